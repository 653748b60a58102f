"""The simulator fleet by the operators' formulas, worked by hand here."""

from __future__ import annotations

import pytest

from planner import _simfleet as simulators
from planner import right_size
from stacks import InputError


def test_the_formulas_give_what_the_operators_get_by_them() -> None:
    assert simulators.capacity(10, 12_000) == 102_000
    assert simulators.cores(10_000) == pytest.approx(28.57, abs=0.01)
    assert simulators.memory_bytes(200) == 2e9 + 2e6
    assert simulators.bandwidth_bytes(10_000, 2e3, 4e3) == 60e6
    assert simulators.after(0) == 50_000
    assert simulators.after(6) == pytest.approx(115_653, abs=1)
    assert simulators.after(12) == pytest.approx(267_513, abs=1)


@pytest.mark.parametrize(
    ("shape", "nodes", "hourly"), [("c6i.2xlarge", 22, 7.48), ("c6i.4xlarge", 11, 7.48), ("c6i.8xlarge", 6, 8.16)]
)
def test_fifty_thousand_requests_are_carried_with_a_seventh_held_back(shape: str, nodes: int, hourly: float) -> None:
    found = right_size(50_000, machine_type=shape, region="us-east-1")
    assert (found.nodes, found.binds) == (nodes, "cpu")
    assert found.cost_per_hour == pytest.approx(hourly)
    assert found.cost_per_million_requests == pytest.approx(hourly / 180)  # 180 million requests an hour
    assert found.cost_per_month == pytest.approx(hourly * 730)
    vcpus = {"c6i.2xlarge": 8, "c6i.4xlarge": 16, "c6i.8xlarge": 32}[shape]
    assert simulators.capacity(nodes, vcpus * 350) >= 50_000 > simulators.capacity(nodes - 1, vcpus * 350)


@pytest.mark.parametrize("shape", ["n2-highcpu-8", "n2-highcpu-32", "c3-highcpu-22"])
def test_googles_shapes_are_sized_and_priced_too(shape: str) -> None:
    assert right_size(50_000, machine_type=shape, region="us-central1").cost_per_million_requests < 0.05


def test_what_runs_out_first_binds() -> None:
    wide = right_size(1_000, machine_type="c6i.2xlarge", region="us-east-1", response_bytes=10e6)
    assert wide.binds == "network"
    long = right_size(1_000, machine_type="c6i.2xlarge", region="us-east-1", seconds_open=3600)
    assert long.binds == "memory"


def test_a_shape_without_a_price_there_is_refused() -> None:
    with pytest.raises(InputError, match="c6i"):
        right_size(1_000, machine_type="c6i.2xlarge", region="us-central1")
    with pytest.raises(InputError, match="machine_type"):
        right_size(1_000, machine_type="c6i.tiny", region="us-east-1")
