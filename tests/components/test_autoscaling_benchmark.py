"""What benchmarks/autoscaling.py computes beside its clusters: the oracle, an HPA's CPU, shorter windows, pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.scaling import Answer, Outcome, Report, Sample, oracle, page, picture
from benchmarks.scaling._metrics import spent, usage
from benchmarks.scaling._scenarios import _shorten, oracle_replicas


def test_the_oracle_starts_what_carries_the_load_a_cold_start_before_it_comes() -> None:
    # 4 requests/s and a little: 8/s need two replicas, for one second, and three seconds before it.
    stages = [(5.0, 1.0, 1.0), (1.0, 8.0, 8.0), (5.0, 1.0, 1.0)]
    found = oracle_replicas(stages, most=4)
    assert len(found) == 22
    assert found == [1] * 4 + [2] * 8 + [1] * 10
    assert oracle(stages, most=4) == sum(found) / 2
    assert oracle(stages, most=1) == 11.0


def test_cpu_is_what_a_pods_processes_spent_between_two_looks() -> None:
    pods = [{"metadata": {"uid": uid, "name": uid, "namespace": "ns"}} for uid in ("old", "new", "unknown")]
    known = {"old": {"engine": 7}, "new": {"engine": 8}}
    (one,) = usage(pods, known, {7: 10.0}, {7: 13.0, 8: 1.0}, 6.0)
    assert one["metadata"]["name"] == "old"
    assert one["containers"] == [{"name": "engine", "usage": {"cpu": "500000000n", "memory": "0"}}]
    assert one["window"] == "6s"


def test_all_processes_of_a_mount_namespace_are_added_up(tmp_path: Path) -> None:
    for number, (inode, ticks) in enumerate([(7, 100), (7, 50), (8, 10)], start=1):
        folder = tmp_path / str(number) / "ns"
        folder.mkdir(parents=True)
        (folder / "mnt").symlink_to(f"mnt:[{inode}]")
        fields = ["S", *["0"] * 10, str(ticks), "0", str(ticks), "0"]
        (folder.parent / "stat").write_text(f"{number} (a) name) {' '.join(fields)}")
    (tmp_path / "self").mkdir()
    found = spent(tmp_path)
    assert set(found) == {7, 8}
    assert found[7] == 15 * found[8]


def test_windows_of_minutes_become_seconds_of_at_least_four_scrapes() -> None:
    rule = {"record": "tollgate:cpu_utilisation:ratio", "expr": "avg(rate(a[1m])) + min_over_time(b[10m]) / 6"}
    _shorten(rule)
    assert rule["expr"] == "avg(rate(a[4s])) + min_over_time(b[10s]) / 0.015"


def test_a_scenarios_picture_has_what_was_asked_what_ran_what_waited_and_what_was_lost() -> None:
    answers = (
        Answer(due=0.5, done=1.5, ok=True, status="ok", ttft=0.2),
        Answer(due=2.0, done=9.0, ok=False, status="http_503", ttft=0.1),
    )
    samples = tuple(
        Sample(at=float(at), wanted=1 + at // 4, ready=1, pending=0, waiting=float(at), running=1.0) for at in range(10)
    )
    report = Report(
        name="<step>", requests=2, lost=1, p95=1.0, recovered=0.0, decided=1.0, ready=2.0, reversals=0,
        replica_seconds=10.0, oracle_seconds=5.0, samples=samples, outcome=Outcome(answers=answers), oracle=(1, 2, 2),
    )  # fmt: skip
    drawn = ElementTree.fromstring(picture(report))
    names = {one.text for one in drawn.iter("{http://www.w3.org/2000/svg}title")}
    assert names == {"requests", "oracle", "asked for", "Ready", "waiting", "promised"}
    colours = [one.attrib["fill"] for one in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(colours) == 2
    assert len(set(colours)) == 2
    whole = page([report])
    assert "&lt;step&gt;" in whole
    assert "http://" not in whole.replace("http://www.w3.org/2000/svg", "")
