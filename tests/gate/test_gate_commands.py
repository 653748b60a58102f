"""The commands over the gate: what they print, and with which code they end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

import gate
import values
from tollgate.__main__ import main

B = "sha256:" + "b2" * 32


@pytest.fixture
def tollgate(world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`tollgate …` in the world's folder: what it printed; `code` is what it has to end with."""
    monkeypatch.chdir(world.root)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["tollgate", *arguments])
        ended = 0
        try:
            ended = main() or 0
        except SystemExit as stop:
            ended = int(stop.code or 0)
        out = capsys.readouterr()
        assert ended == code, out.out + out.err
        return out.out + out.err

    return run


@pytest.fixture
def now() -> datetime:
    """The commands ask the real clock."""
    return datetime.now(UTC)


def digest(world: Any) -> str:
    """Of the world's release, as the commands work it out."""
    found: str = values.release_digest(world.stack("local-dev").release)
    return found


def measure(world: Any, now: datetime, **result: Any) -> gate.Evidence:
    found: gate.Evidence = world.record(world.result(release=digest(world), started=now, **result), now)
    return found


def test_the_gate_says_why_not_and_ends_with_3(world: Any, tollgate: Any, now: datetime) -> None:
    said = tollgate("gate", "local-prod", code=3)
    assert "local-prod is gated and nothing was promoted into it" in said
    assert "no evidence of release gemma-8" in tollgate("gate", "local-dev", code=3)
    measure(world, now, metrics=world.slow)
    assert "by its own promise: fail" in tollgate("gate", "local-dev", code=3)


def test_a_promotion_and_the_gate_end_with_0_and_say_the_numbers(world: Any, tollgate: Any, now: datetime) -> None:
    evidence = measure(world, now)
    said = tollgate("promote", "local-dev", "local-prod")
    assert "local-prod takes release gemma-8" in said
    assert "e2e_p95_seconds" in said
    assert evidence.digest in said
    assert "stacks/Pulumi.local-prod.yaml changed: review and commit it" in said
    assert "says so already" in tollgate("promote", "local-dev", "local-prod")
    answer = json.loads(tollgate("gate", "local-prod", "--json"))
    assert (answer["outcome"], answer["evidence"]) == ("pass", evidence.digest)
    assert "local-prod admits release gemma-8: pass" in tollgate("gate", "local-prod")


def test_a_promotion_that_is_refused_ends_with_3_and_one_that_cannot_be_with_2(
    world: Any, tollgate: Any, now: datetime
) -> None:
    measure(world, now, metrics=world.slow)
    assert "local-prod refuses release gemma-8: fail" in tollgate("promote", "local-dev", "local-prod", code=3)
    assert "local-other is not gated" in tollgate("promote", "local-dev", "local-other", code=2)


def test_evidence_is_listed_shown_and_verified(world: Any, tollgate: Any, now: datetime) -> None:
    assert "no evidence yet" in tollgate("evidence", "list")
    evidence = measure(world, now)
    tollgate("promote", "local-dev", "local-prod")
    (first, second) = json.loads(tollgate("evidence", "list", "--json"))
    assert (first["kind"], first["verdict"], first["evidence"]) == ("measurement", "pass", evidence.digest)
    assert (second["kind"], second["stack"]) == ("promotion", "local-prod")
    assert evidence.digest[7:19] in tollgate("evidence", "list")
    shown = json.loads(tollgate("evidence", "show", evidence.digest[7:15]))
    assert shown["subject"][0]["name"] == "gemma-8"
    said = tollgate("evidence", "verify")
    assert "2 statement(s): every signature holds and the chain is whole" in said
    path = world.files()[0]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"sig"', b'"sgi"'))
    assert "evidence 000001.json" in tollgate("evidence", "verify", code=3)


def test_an_evidence_that_is_not_there_is_answered_with_those_that_are(
    world: Any, tollgate: Any, now: datetime
) -> None:
    evidence = measure(world, now)
    assert evidence.digest[7:19] in tollgate("evidence", "show", "ffff", code=2)


def test_two_measurements_are_compared_line_by_line(world: Any, tollgate: Any, now: datetime) -> None:
    one = measure(world, now)
    world.edit("releases/gemma-8.yaml", "slots: 8", "slots: 9")
    two = measure(world, now + timedelta(seconds=1), factor=1.1)
    rows = {row["what"]: row for row in json.loads(tollgate("evidence", "diff", one.digest, two.digest, "--json"))}
    assert (rows["release.parallelism.slots"]["one"], rows["release.parallelism.slots"]["two"]) == (8, 9)
    assert rows["digest"]["one"] != rows["digest"]["two"]
    assert rows["e2e_p95_seconds"]["two"] / rows["e2e_p95_seconds"]["one"] == pytest.approx(1.1)
    assert "+10.0%" in tollgate("evidence", "diff", one.digest, two.digest)
    assert "no difference" in tollgate("evidence", "diff", one.digest, one.digest)
    tollgate("promote", "local-dev", "local-prod", code=0)
    promotion = world.entries()[-1]
    assert "two measurements" in tollgate("evidence", "diff", one.digest, promotion.digest, code=2)


def test_an_approval_is_signed_shown_and_kept_in_the_history(world: Any, tollgate: Any, now: datetime) -> None:
    measure(world, now, metrics={**world.good, "e2e_p95_seconds": 9.9})
    said = tollgate(
        "approve", "local-prod", "--why", "the fair needs it", "--by", "Ada", "--days", "1",
        "--criterion", "e2e_p95_seconds", "--criterion", "scale",
    )  # fmt: skip
    assert "Ada approves release gemma-8 for local-prod: e2e_p95_seconds, scale" in said
    assert "approved by Ada until" in tollgate("promote", "local-dev", "local-prod")
    shown = tollgate("gate", "local-prod")
    assert "the fair needs it" in shown
    assert "approval sha256:" in shown
    history = tollgate("evidence", "history", "local-prod")
    assert "Ada approved e2e_p95_seconds, scale until" in history
    assert "1 approval(s)" in history


def test_an_approval_for_a_stack_that_is_not_gated_is_wrong_input(world: Any, tollgate: Any) -> None:
    assert "takes releases from another" in tollgate("approve", "local-dev", "--why", "no reason at all", code=2)


def test_a_rollback_says_from_what_to_what(world: Any, tollgate: Any, now: datetime) -> None:
    measure(world, now)
    tollgate("promote", "local-dev", "local-prod")
    world.edit("Pulumi.local-dev.yaml", "gemma-8", "gemma-1")
    measure(world, datetime.now(UTC), factor=1.01, server={"slots": 1})
    tollgate("promote", "local-dev", "local-prod")
    assert "local-prod returns from gemma-1 to gemma-8" in tollgate("rollback", "local-prod", "--why", "users wait")
    events = json.loads(tollgate("evidence", "history", "local-prod", "--json"))
    assert [event["kind"] for event in events] == ["promotion", "promotion", "rollback"]
    assert "no passing release to return to" in tollgate("rollback", "local-prod", code=3)


def test_a_pull_request_prints_its_body_and_names_the_branch(world: Any, tollgate: Any, now: datetime) -> None:
    subprocess.run(["git", "init", "-q"], cwd=world.root, check=True)
    for name in ("user.name", "user.email"):
        subprocess.run(["git", "config", name, "ada@example.com"], cwd=world.root, check=True)
    for command in (["add", "stacks", "Pulumi.yaml"], ["commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=world.root, check=True)
    measure(world, now)
    said = tollgate("promote", "local-dev", "local-prod", "--pr")
    assert "Promote gemma-8 from local-dev to local-prod: pass, 3 runs." in said
    assert "git push origin promote/local-prod/gemma-8-" in said
    assert world.stack("local-prod").promotion is None


def test_a_calibration_shows_the_floor_and_signs_it(world: Any, tollgate: Any, now: datetime) -> None:
    files = []
    for index, factor in enumerate((0.99, 1.0, 1.01)):
        path = world.root / f"session-{index}.json"
        path.write_text(world.result(factor=factor, release=digest(world)).model_dump_json())
        files.append(str(path))
    said = tollgate("evidence", "calibrate", "local-dev", *files)
    assert "floor at 3 runs" in said
    assert "e2e_p95_seconds" in said
    assert world.entries()[-1].kind == "calibration"
    (world.root / "broken.json").write_text("{}")
    assert "a result of tollgate bench" in tollgate("evidence", "calibrate", "local-dev", "broken.json", code=2)


def test_every_command_has_words_for_who_asks_for_help() -> None:
    from tollgate.commands import evidence

    shown = CliRunner().invoke(evidence.app, ["--help"]).output
    for command in ("list", "show", "verify", "diff", "history", "calibrate"):
        assert command in shown
