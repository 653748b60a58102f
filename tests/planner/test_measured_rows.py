"""The two measured rows of the design: Gemma 3 4B by Ollama on ten L4 nodes, 50 users without think time."""

from __future__ import annotations

import pytest

from planner import plan_for, timing_for
from stacks import Fleet, Nodes, Tokens, Traffic, load_release

FLEET = Fleet(machine_type="g2-standard-8", nodes=Nodes(min=10, max=10))
TRAFFIC = Traffic(users=50, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))


@pytest.mark.parametrize(("slots", "rate", "seconds"), [(1, 50 / 9.7, 9.7), (8, 50 / 2.7, 2.7)])
def test_the_plan_gives_the_measured_rate_and_latency(slots: int, rate: float, seconds: float) -> None:
    plan = plan_for(release=load_release(f"gemma-3-4b-ollama-{slots}"), fleet=FLEET, traffic=TRAFFIC)
    assert plan.slots == slots
    assert plan.predicted["requests_per_second"] == pytest.approx(rate, rel=0.05)
    assert plan.predicted["e2e_mean_seconds"] == pytest.approx(seconds, rel=0.05)


def test_users_queue_with_one_slot_and_not_with_eight() -> None:
    one = plan_for(release=load_release("gemma-3-4b-ollama-1"), fleet=FLEET, traffic=TRAFFIC)
    eight = plan_for(release=load_release("gemma-3-4b-ollama-8"), fleet=FLEET, traffic=TRAFFIC)
    assert one.predicted["queue_depth"] == pytest.approx(4.0)
    assert eight.predicted["queue_depth"] == 0.0


@pytest.mark.parametrize(("together", "seconds"), [(1, 1.94), (5, 2.70)])
def test_stepping_the_same_functions_as_an_engine_does_gives_the_same_seconds(together: int, seconds: float) -> None:
    timing = timing_for(engine="ollama", model="gemma3:4b", quantization="q4-k-m", gpu="nvidia-l4")
    spent = max(timing.prefill_seconds(128 * together, together), timing.decode_step_seconds(1, 0))
    for made in range(1, 128):
        spent += timing.decode_step_seconds(together, 128 + made)
    assert spent == pytest.approx(seconds, rel=0.01)
