"""Building: once, completely or not at all, and so that it can be interrupted and run twice at once."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from local import tools
from local.tools import _build, _compile, _debian, _files, _find, _jobs, _places
from local.tools._table import TOOLS
from stacks import TollgateError
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]


def _load_fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_fakes", Path(__file__).with_name("tools_fakes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fakes = _load_fakes()


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake `go` alone on PATH and an empty cache; returns the folder that steers it."""
    monkeypatch.setenv("PATH", str(fakes.fake_go(tmp_path)))
    monkeypatch.setenv("FAKE_GO", str(tmp_path))
    monkeypatch.setenv("TOLLGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(_find, "_SBIN", ())
    return tmp_path


def run_ensure(*names: str) -> subprocess.Popen[str]:
    code = f"from local import tools; print(tools.ensure({list(names)!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file() and "tmp" in path.parts[-4:]]


def test_a_missing_tool_is_built_and_the_second_time_costs_nothing(go: Path) -> None:
    steps: list[tools.Step] = []
    found = tools.ensure(["helm"], progress=steps.append)
    assert subprocess.run([found["helm"]], capture_output=True, text=True).stdout == "built\n"
    assert found["helm"] == tools.path("helm")
    assert {one.name: one.origin for one in tools.status()}["helm"] == "built"
    assert steps[0].state == "queued"
    assert steps[-1].state == "done"
    assert [step.done for step in steps if step.total] == [0, 1, 2, 3, 4, 5]
    assert [step.state for step in steps if step.total][-1] == "linking"
    steps.clear()
    assert tools.ensure(["helm"], progress=steps.append) == found
    assert steps == []
    assert len(fakes.calls(go, "build")) == 1


def test_programs_of_one_module_are_built_by_one_command(go: Path) -> None:
    tools.ensure(["kube-apiserver", "kube-scheduler", "helm"], progress=lambda _: None)
    builds = fakes.calls(go, "build")
    assert len(builds) == 2
    (kubernetes,) = (call for call in builds if "k8s.io/kubernetes/cmd/kube-apiserver" in call["arguments"])
    assert "k8s.io/kubernetes/cmd/kube-scheduler" in kubernetes["arguments"]
    assert str(kubernetes["cwd"]).endswith("/kubernetes")


def test_builds_see_a_private_cache_and_not_the_users_settings(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GOOS": "plan9", "GOFLAGS": "-race", "GOCACHE": "/nowhere", "GOWORK": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    tools.ensure(["helm"], progress=lambda _: None)
    (build,) = fakes.calls(go, "build")
    environment = build["environment"]
    assert environment["GOCACHE"] == str(go / "cache" / "go-build")
    assert environment["CGO_ENABLED"] == "0"
    assert environment["GOFLAGS"] == "-buildvcs=false -mod=readonly"
    assert environment["GOWORK"] == "off"
    assert environment["GOTOOLCHAIN"] == "local"
    assert str(go / "cache") in environment["GOTMPDIR"]
    assert "GOOS" not in environment
    assert "GOMODCACHE" not in environment or environment["GOMODCACHE"] == os.environ.get("GOMODCACHE")


def test_the_build_cache_is_kept_until_every_default_tool_is_there(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.ensure(["helm"], progress=lambda _: None)
    assert (go / "cache" / "go-build").is_dir()
    monkeypatch.setattr(_build, "TOOLS", (_find.tool("helm"), _find.tool("etcd"), _find.tool("ollama")))
    tools.ensure(["etcd"], progress=lambda _: None)
    assert not (go / "cache" / "go-build").exists()
    assert not list((go / "cache" / "tmp").iterdir())


def test_a_script_of_a_module_becomes_an_executable(go: Path) -> None:
    script = go / "module" / "python" / "cmd" / "pulumi-language-python-exec"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho script\n")
    found = tools.ensure(["pulumi-language-python-exec"], progress=lambda _: None)
    assert subprocess.run(list(found.values()), capture_output=True, text=True).stdout == "script\n"


def test_data_folders_are_kept_in_the_cache_in_an_order_that_applies(go: Path) -> None:
    for folder, name in (("node/fast", "b"), ("node/heartbeat-with-lease", "a"), ("pod/fast", "a")):
        place = go / "module" / "kustomize" / "stage" / folder
        place.mkdir(parents=True)
        (place / f"{name}.yaml").write_text(f"kind: Stage\nname: {folder}\n")
        (place / "kustomization.yaml").write_text("kind: Kustomization\n")
    tools.ensure(["kwok"], progress=lambda _: None)
    assert [file.name for file in sorted(tools.data("kwok-stages").iterdir())] == [
        "00-b.yaml",
        "01-a.yaml",
        "02-a.yaml",
    ]


def test_only_roles_and_accounts_are_kept_of_what_keda_ships() -> None:
    text = "kind: Deployment\n---\nkind: ClusterRole\nn: 1\n---\n---\nkind: ServiceAccount\n"
    assert (
        _files.of_kinds(text, ("ServiceAccount", "ClusterRole"))
        == "kind: ServiceAccount\n---\nkind: ClusterRole\nn: 1\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_its_children_and_leaves_nothing_partial(
    go: Path, number: signal.Signals, ended: list[subprocess.Popen[str]]
) -> None:
    (go / "pause").write_text("200")
    process = run_ensure("helm")
    ended.append(process)
    until(lambda: fakes.calls(go, "build"))
    (build,) = fakes.calls(go, "build")
    process.send_signal(number)
    process.communicate(timeout=90)
    assert process.returncode != 0
    until(lambda: not psutil.pid_exists(int(str(build["pid"]))))
    assert not (go / "cache" / "tools").exists()
    assert list((go / "cache" / "tmp").iterdir()) == []
    (go / "pause").unlink()
    tools.ensure(["helm"], progress=lambda _: None)
    assert tools.path("helm").exists()


def test_what_a_killed_run_left_is_removed_by_the_next(go: Path, ended: list[subprocess.Popen[str]]) -> None:
    (go / "hold").write_text("")
    process = run_ensure("helm")
    ended.append(process)
    until(lambda: fakes.calls(go, "build"))
    (build,) = fakes.calls(go, "build")
    process.kill()
    process.communicate()
    (go / "hold").unlink()
    # Its progress has no reader any more, which ends the orphan at its next package.
    until(lambda: not psutil.pid_exists(int(str(build["pid"]))))
    assert list((go / "cache" / "tmp").iterdir()) != []
    tools.ensure(["helm"], progress=lambda _: None)
    assert list((go / "cache" / "tmp").iterdir()) == []


def test_of_two_at_once_one_builds_and_the_other_says_for_whom_it_waits(
    go: Path, ended: list[subprocess.Popen[str]]
) -> None:
    (go / "hold").write_text("")
    first = run_ensure("helm")
    ended.append(first)
    until(lambda: fakes.calls(go, "build"))
    second = run_ensure("helm")
    ended.append(second)
    assert second.stderr is not None
    line = second.stderr.readline()
    (go / "hold").unlink()
    out_1, _ = first.communicate(timeout=90)
    out_2, _ = second.communicate(timeout=90)
    assert (first.returncode, second.returncode) == (0, 0)
    assert out_1 == out_2
    assert "helm" in out_1
    assert f"waits for process {first.pid}" in line
    assert len(fakes.calls(go, "build")) == 1


def test_clean_is_refused_while_another_process_builds(go: Path, ended: list[subprocess.Popen[str]]) -> None:
    (go / "pause").write_text("200")
    process = run_ensure("helm")
    ended.append(process)
    until(lambda: fakes.calls(go, "build"))
    with pytest.raises(TollgateError, match="another process"):
        tools.clean(everything=True)
    process.terminate()
    process.communicate(timeout=90)


def test_clean_keeps_what_is_in_use_and_removes_the_rest(go: Path) -> None:
    tools.ensure(["helm"], progress=lambda _: None)
    old = go / "cache" / "tools" / "helm" / "3.1.0-000000000000"
    old.mkdir()
    compiled = go / "cache" / "preview" / "cpython-311-0123456789ab"
    compiled.mkdir(parents=True)
    assert old in tools.clean()
    assert not old.exists()
    assert compiled.exists()
    assert tools.path("helm").exists()
    assert not (go / "cache" / "go-build").exists()
    assert compiled.parent in tools.clean(everything=True)
    assert not compiled.parent.exists()
    with pytest.raises(TollgateError):
        tools.path("helm")


def test_a_failing_build_shows_the_end_of_its_log_and_where_it_lies(go: Path) -> None:
    (go / "fail").write_text("a.go:1:2: undefined: b")
    with pytest.raises(TollgateError, match=r"building helm failed:(.|\n)*undefined: b(.|\n)*log: .*helm\.log"):
        tools.ensure(["helm"], progress=lambda _: None)
    assert not (go / "cache" / "tools").exists()
    assert len(fakes.calls(go, "build")) == 1


def test_one_failing_build_ends_the_others(go: Path) -> None:
    (go / "fail").write_text("a.go:1:2: undefined: b")
    steps: list[tools.Step] = []
    with pytest.raises(TollgateError, match="undefined: b"):
        tools.ensure(["helm", "etcd", "kwok", "keda-adapter"], progress=steps.append)
    assert "failed" in {step.state for step in steps}
    assert len(fakes.calls(go, "build")) < 4


def test_a_proxy_that_cannot_be_reached_is_tried_again_and_then_named(
    go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compile, "_PAUSES", (0.0, 0.0))
    (go / "fail").write_text("go: example.org/a@v1: Get: dial tcp: lookup proxy: no such host")
    with pytest.raises(TollgateError, match=r"cannot be downloaded(.|\n)*GOPROXY"):
        tools.ensure(["helm"], progress=lambda _: None)
    assert len(fakes.calls(go, "build")) == 3


def test_a_disk_that_fills_up_names_the_folder_and_the_way_out(go: Path) -> None:
    (go / "fail").write_text("compile: write $WORK/b1/x.a: no space left on device")
    with pytest.raises(TollgateError, match=r"no space left") as caught:
        tools.ensure(["helm"], progress=lambda _: None)
    assert str(go / "cache") in str(caught.value)
    assert "TOLLGATE_CACHE" in str(caught.value)
    assert "GB free" in str(caught.value)


def test_too_small_a_disk_is_refused_before_anything_is_built(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build.shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000_000))
    with pytest.raises(TollgateError, match=r"0\.2 GB free, \d+\.\d GB are needed(.|\n)*TOLLGATE_CACHE"):
        tools.ensure(["helm"], progress=lambda _: None)
    assert fakes.calls(go, "build") == []


def test_all_tools_together_need_about_eleven_gigabytes_less_what_is_there() -> None:
    everything = _jobs.Plan(
        builds=tuple(_jobs.GoJob(tools=(row,)) for row in TOOLS if not row.optional and row.weight), others=(), data=()
    )
    needed = _jobs.bytes_needed(everything, own_modules=False, already=0)
    assert 10e9 < needed < 12e9
    assert _jobs.bytes_needed(everything, own_modules=False, already=4_000_000_000) == needed - 4_000_000_000
    assert _jobs.bytes_needed(everything, own_modules=True, already=0) > needed + 5e9


def test_a_cache_folder_that_cannot_be_made_is_an_error_with_a_fix(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (go / "file").write_text("")
    monkeypatch.setenv("TOLLGATE_CACHE", str(go / "file" / "cache"))
    with pytest.raises(TollgateError, match="TOLLGATE_CACHE"):
        tools.ensure(["helm"], progress=lambda _: None)


def test_jobs_come_in_the_order_of_the_table_whatever_was_asked(go: Path) -> None:
    todo = _jobs.plan([_find.tool(name) for name in ("keda-operator", "kube-proxy", "helm", "pulumi-language-python")])
    assert [job.name for job in todo.builds] == [
        "pulumi-language-python",
        "helm",
        "kubernetes (2 programs)",
        "keda-operator",
    ]
    # kubectl is not on this PATH, and renders KEDA's files.
    assert {tool.name for tool in todo.builds[2].tools} == {"kube-proxy", "kubectl"}
    assert [job.name for job in todo.data] == ["keda-crds", "keda-rbac"]


def test_too_old_a_go_is_not_used(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (go / "version").write_text("1.25.9")
    asked: list[str] = []

    def no_install(*_: object) -> None:
        asked.append("install")
        raise TollgateError("no index here")

    monkeypatch.setattr(_build._go, "install", no_install)
    with pytest.raises(TollgateError, match="no index here"):
        tools.ensure(["helm"], progress=lambda _: None)
    assert asked == ["install"]


@pytest.mark.parametrize(
    ("package", "name"),
    [("go.etcd.io/etcd/server/v3", "server"), ("k8s.io/kubernetes/cmd/kubectl", "kubectl"), ("example.org/v", "v")],
)
def test_the_programs_name_is_the_last_part_that_is_no_major_version(package: str, name: str) -> None:
    assert _compile.program_name(package) == name


def test_apt_says_which_packages_this_machine_lacks() -> None:
    simulation = (
        "NOTE: This is only a simulation!\nInst libnftnl11 (1.2)\nInst nftables (1.0.6)\nConf nftables (1.0.6)\n"
    )
    assert _debian.to_install(simulation) == ["libnftnl11", "nftables"]


def test_an_unpacked_program_runs_with_the_libraries_beside_it(tmp_path: Path) -> None:
    program = fakes.program(tmp_path / "a b", "nft", "$LD_LIBRARY_PATH")
    program.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH $1"\n')
    script = tmp_path / "nft"
    script.write_text(_debian.wrapper([tmp_path / "lib"], program))
    script.chmod(0o755)
    said = subprocess.run([script, "--version"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert said.stdout == f"{tmp_path / 'lib'} --version\n"
    assert "LD_LIBRARY_PATH" not in _debian.wrapper([], program)


def test_without_apt_the_error_names_the_administrators_command(go: Path) -> None:
    with pytest.raises(TollgateError, match="apt-get install nftables"):
        tools.ensure(["nft"], progress=lambda _: None)


def test_a_build_tells_which_go_made_it(go: Path) -> None:
    tools.ensure(["helm"], progress=lambda _: None)
    assert '"go": "1.26.8"' in (_places.folder(_find.tool("helm")) / "build.json").read_text()
