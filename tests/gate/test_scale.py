"""Measured capacity times the fleet against the traffic to come, with numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

import planner
import stacks
from gate._scale import capacity, scale

CRITERIA = stacks.Criteria()


def changed(world: Any, **parts: Any) -> stacks.Stack:
    found: stacks.Stack = world.stack("local-prod")
    if "traffic" in parts:
        parts["traffic"] = found.traffic.model_copy(update=parts["traffic"])
    if "objectives" in parts:
        parts["objectives"] = stacks.Objectives.model_validate(parts["objectives"])
    return found.model_copy(update=parts)


def test_the_same_load_on_the_same_fleet_is_carried_as_measured(world: Any) -> None:
    stack = changed(world, objectives={"error_rate": 0.01})
    found = capacity(stack, CRITERIA, world.result(), 10)
    assert (found.lower, found.how) == (50.0, "users as measured")
    assert scale(stack, CRITERIA, world.result(), planner.plan(stack)).outcome == "pass"


def test_headroom_beyond_what_was_measured_needs_the_law(world: Any) -> None:
    # 18 req/s, p95 3.1 s, mean 2.7 s, promise p95 5 s: a mean of 5 × 2.7 / 3.1 = 4.355 s, so 18 × 4.355 = 78 users.
    stack = changed(world)
    found = capacity(stack, CRITERIA, world.result(), 10)
    assert found.mean == pytest.approx(18 * 5 * 2.7 / 3.1, rel=0.005)
    assert found.lower < found.mean < found.upper
    assert found.lower == pytest.approx(found.mean * math.exp(-2.92 * 0.01 / math.sqrt(3)), rel=0.002)


def test_where_the_first_token_is_promised_nothing_beyond_the_measured_load_is_concluded(world: Any) -> None:
    stack = changed(world, objectives={"e2e_p95_seconds": 5, "ttft_p95_seconds": 1})
    assert capacity(stack, CRITERIA, world.result(), 10).lower == 50.0


def test_users_who_think_longer_ask_less(world: Any) -> None:
    patient = changed(world, traffic={"think_seconds": 10.0})
    # 18 × (4.355 + 10) = 258 users.
    assert capacity(patient, CRITERIA, world.result(), 10).mean == pytest.approx(258.4, rel=0.005)


def test_users_who_think_less_than_those_measured_are_not_carried_by_their_number(world: Any) -> None:
    hurried = changed(world, objectives={"error_rate": 0.01})
    result = world.result(traffic={"think_seconds": 60.0})
    found = capacity(hurried, CRITERIA, result, 10)
    assert found.how == "a mean latency of 2.70 s"
    assert found.mean == pytest.approx(18 * 2.7, rel=0.005)


def test_half_the_fleet_carries_half(world: Any) -> None:
    stack = changed(world)
    whole, half = capacity(stack, CRITERIA, world.result(), 10), capacity(stack, CRITERIA, world.result(), 5)
    assert half.lower == pytest.approx(whole.lower / 2)


def test_open_arrivals_that_were_answered_count_as_offered(world: Any) -> None:
    stack = changed(world, traffic={"arrival": "poisson", "users": None, "requests_per_second": 18.0})
    offered = {"arrival": "poisson", "users": None, "requests_per_second": 18.1}
    found = capacity(stack, CRITERIA, world.result(traffic=offered), 10)
    assert (found.lower, found.how) == (18.1, "as offered")


def test_open_arrivals_that_were_not_kept_up_with_count_as_answered(world: Any) -> None:
    stack = changed(world, traffic={"arrival": "poisson", "users": None, "requests_per_second": 18.0})
    offered = {"arrival": "poisson", "users": None, "requests_per_second": 30.0}
    found = capacity(stack, CRITERIA, world.result(traffic=offered), 10)
    assert found.how == "as answered"
    assert found.lower < 18.0 < found.upper


def test_a_fleet_that_is_too_small_is_refused_with_nodes_and_dollars(world: Any) -> None:
    stack = changed(world, traffic={"users": 500})
    plan = planner.plan(stack)
    line = scale(stack, CRITERIA, world.result(), plan)
    assert line.outcome == "fail"
    assert line.needed == "≥ 500 users"
    per_node = line.bound / 10
    nodes = math.ceil((500 - line.bound) / per_node)
    assert f"short by {nodes} node(s), ${nodes * plan.cost_per_hour_max_usd / 10:.2f}/h" in line.why
    assert line.bound + nodes * per_node >= 500 > line.bound + (nodes - 1) * per_node


def test_a_fleet_within_the_noise_of_enough_is_inconclusive(world: Any) -> None:
    stack = changed(world, traffic={"users": 78})
    assert scale(stack, CRITERIA, world.result(), planner.plan(stack)).outcome == "inconclusive"


def test_a_result_without_a_rate_does_not_scale(world: Any) -> None:
    stack = changed(world)
    partial = {name: value for name, value in world.good.items() if name != "requests_per_second"}
    line = scale(stack, CRITERIA, world.result(partial), planner.plan(stack))
    assert (line.outcome, line.why) == ("inconclusive", "not measured in 3 run(s)")


def test_the_refusal_reaches_the_user(world: Any) -> None:
    world.edit("Pulumi.local-prod.yaml", "users: 50", "users: 500")
    world.record()
    world.not_promoted(r"scale +≥ 500 users .*fail .*short by \d+ node\(s\), \$\d")
