"""What tests share: one embedded cluster for all that need one, a namespace each, and a check that nothing is left."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

HERE = Path(__file__).resolve().parents[1]
_numbers = itertools.count(1)
# The files that take longest come first, so that no process is left alone with one of them at the end. More than half a minute
# each, by the durations that `make test` prints.
_LONGEST = (
    "local/test_provider_up.py",
    "test_loop.py",
    "local/test_scaling_scenarios.py",
    "gate/test_gate_scenes.py",
    "components/test_previews.py",
    "local/test_autoscaling_live.py",
    "local/test_monitoring_live.py",
    "local/test_cluster_life.py",
    "gate/test_gate_in_pulumi.py",
    "bench/load/test_load_runs.py",
    "bench/simulator/test_simulator_fuzz.py",
    "preview/test_state.py",
    "bench/batch/test_batch_runs.py",
    "bench/simulator/test_simulator_workers.py",
    "gate/test_error_rates.py",
    "bench/batch/test_batch_job.py",
)

# The same examples each time, however slow the machine: what fails is of the change, not of the dice. Other ones by
# `pytest --hypothesis-profile=default`.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("steady")
# Nor are they taken from the constants of our own modules: which of those are imported, and which files hypothesis takes for
# ours, depends on what ran before and on where the checkout lies. There is no setting for it.
providers.is_local_module_file = lambda path: False  # type: ignore[assignment]


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "leave out the fast tests of PATH: they have run, for the coverage of the components"
    parser.addoption("--covered", action="append", default=[], metavar="PATH", help=words)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = [HERE / path for path in config.getoption("--covered")]
    left = [
        item
        for item in items
        if any(item.get_closest_marker(name) for name in ("cluster", "browser", "slow"))
        or not any(item.path.is_relative_to(path) for path in done)
    ]
    if len(left) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(left)])
        items[:] = left
    first = {HERE / "tests" / name: place for place, name in enumerate(_LONGEST)}
    if gone := [str(path) for path in first if not path.is_file()]:
        raise pytest.UsageError(f"{gone[0]} is among the longest in {__file__}, but is not there")
    items.sort(key=lambda item: first.get(item.path, len(first)))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A running cluster of this session's own; at its end, nothing of it may be left."""
    from local import cluster as room

    home = tmp_path_factory.mktemp("tollgate-home")
    before = os.environ.get("TOLLGATE_HOME")
    os.environ["TOLLGATE_HOME"] = str(home)
    name = f"test-{os.getpid()}"
    found = room.up(name)
    try:
        yield found
    finally:
        room.down(name)
        left = room.leftovers(found.state_dir)
        if before is None:
            os.environ.pop("TOLLGATE_HOME", None)
        else:
            os.environ["TOLLGATE_HOME"] = before
        assert left == [], f"processes left by the cluster: {left}"
        assert not found.state_dir.exists()


@pytest.fixture(scope="session")
def kubectl(cluster: object) -> object:
    """kubectl as a function: arguments in, standard output out; an error fails the test."""

    def run(*arguments: str, given: str | None = None, check: bool = True, seconds: float = 240) -> str:
        env = cluster.environment(HERE)  # type: ignore[attr-defined]
        done = subprocess.run(
            ["kubectl", *arguments], env=env, input=given, capture_output=True, text=True, timeout=seconds, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    return run


@pytest.fixture
def fresh_namespace(kubectl: object) -> Iterator[str]:
    """A namespace of the test's own, removed afterwards without waiting."""
    name = f"t-{os.getpid()}-{next(_numbers)}"
    kubectl("create", "namespace", name)  # type: ignore[operator]
    yield name
    kubectl("delete", "namespace", name, "--wait=false", check=False)  # type: ignore[operator]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of this project's stack files in a folder of the test's own."""
    shutil.copy(HERE / "Pulumi.yaml", tmp_path)
    shutil.copytree(HERE / "stacks", tmp_path / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path
