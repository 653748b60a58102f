"""Replicas that share a GPU (time-sharing, MPS): more of them, each slower, in a part of the memory."""

from __future__ import annotations

import pytest

import planner
from stacks import Fleet, Nodes, Sharing, Tokens, Traffic, load_release

RELEASE = load_release("gemma-3-4b-ollama-8")


def plan(clients: int | None, users: int = 50) -> planner.Plan:
    sharing = Sharing(strategy="time-sharing", clients=clients) if clients else None
    fleet = Fleet(machine_type="g2-standard-8", nodes=Nodes(min=10, max=10), sharing=sharing)
    traffic = Traffic(users=users, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))
    return planner.plan_for(release=RELEASE, fleet=fleet, traffic=traffic)


def test_a_shared_gpu_runs_as_many_replicas_as_it_has_clients() -> None:
    assert (plan(None).replicas_per_node, plan(None).replicas_max) == (1, 10)
    assert (plan(3).replicas_per_node, plan(3).replicas_max) == (3, 30)
    assert any("3 replicas share a GPU by time-sharing" in line for line in plan(3).assumptions)


def test_sharing_adds_no_speed_and_reads_the_weights_once_for_every_replica() -> None:
    alone, shared = plan(None, users=240), plan(3, users=240)
    assert shared.predicted["capacity_requests_per_second"] < alone.predicted["capacity_requests_per_second"] * 3
    times = planner.timing(RELEASE)
    assert times.shared(3).decode_step_seconds(4, 500) == pytest.approx(3 * times.decode_step_seconds(4, 500))
    assert times.shared(3).prefill_seconds(128, 1) == pytest.approx(3 * times.prefill_seconds(128, 1))
    assert times.shared(1) is times
    # Eight at once on one engine beat eight spread over three that take turns.
    assert plan(None, users=80).predicted["e2e_mean_seconds"] < plan(3, users=80).predicted["e2e_mean_seconds"]


def test_each_of_them_has_its_part_of_the_memory() -> None:
    assert plan(3).max_slots < plan(None).max_slots / 3
    memory = plan(3).memory
    assert 3 * memory.used_bytes(plan(3).max_slots) <= memory.usable_bytes
