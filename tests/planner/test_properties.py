"""What must hold for every input: monotone memory, latency and cost; slices never above the card; no nonsense numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import planner
from stacks import Fleet, Nodes, Objectives, Tokens, Traffic, load_release

CATALOG = planner.catalog()
MODELS = st.sampled_from(sorted(CATALOG.models))
GPUS = st.sampled_from(sorted(CATALOG.gpus))
RELEASE = load_release("gemma-3-4b-ollama-8")
PAIRS = st.sampled_from([(e, q.id) for q in CATALOG.quantizations.values() for e in q.engines])


def timing(model: str, gpu: str, pair: tuple[str, str]) -> planner.Timing:
    return planner.timing_for(engine=pair[0], model=model, quantization=pair[1], gpu=gpu)


def closed(users: int, think: float, output: float, cv: float = 0.0) -> Traffic:
    return Traffic(
        users=users, think_seconds=think, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=output, cv=cv)
    )


@given(MODELS, GPUS, PAIRS, st.integers(1, 500))
def test_more_slots_never_need_less_memory(model: str, gpu: str, pair: tuple[str, str], slots: int) -> None:
    memory = planner.memory_for(
        engine=CATALOG.engine(pair[0]),
        model=CATALOG.model(model),
        quantization=CATALOG.quantization(pair[1]),
        gpu=CATALOG.gpu(gpu),
    )
    assert memory.used_bytes(slots + 1) > memory.used_bytes(slots)
    assert memory.max_slots == 0 or memory.used_bytes(memory.max_slots) <= memory.usable_bytes


@given(MODELS, GPUS, PAIRS, st.integers(1, 300), st.floats(1, 20_000))
def test_a_step_never_gets_shorter_by_more_sequences_or_context(
    model: str, gpu: str, pair: tuple[str, str], running: int, context: float
) -> None:
    times = timing(model, gpu, pair)
    step = times.decode_step_seconds(running, context)
    assert 0 < step <= times.decode_step_seconds(running + 1, context)
    assert step <= times.decode_step_seconds(running, context + 100)


@settings(max_examples=60, deadline=None)
@given(
    MODELS, GPUS, PAIRS, st.integers(1, 400), st.integers(1, 16), st.integers(1, 64), st.sampled_from([0.0, 1.0, 30.0])
)
def test_more_users_never_lower_latency(
    model: str, gpu: str, pair: tuple[str, str], users: int, replicas: int, slots: int, think: float
) -> None:
    times = timing(model, gpu, pair)
    one = planner.predict(times, slots=slots, replicas=replicas, traffic=closed(users, think, 64))
    more = planner.predict(times, slots=slots, replicas=replicas, traffic=closed(users + replicas, think, 64))
    assert more.e2e_mean_seconds >= one.e2e_mean_seconds * (1 - 1e-9)
    assert more.requests_per_second >= one.requests_per_second * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
# Waiting so rare or so short that its square is no number any more.
@example("gemma-3-4b-it", "nvidia-l4", ("ollama", "q4-k-m"), 0.1, 16, 64, "poisson", 0.0)
@example("gemma-3-4b-it", "nvidia-l4", ("ollama", "q4-k-m"), 2.0, 1, 8, "constant", 1e-160)
@given(
    MODELS,
    GPUS,
    PAIRS,
    st.floats(0.1, 200),
    st.integers(1, 16),
    st.integers(1, 64),
    st.sampled_from(["poisson", "constant"]),
    st.floats(0, 2),
)
def test_percentiles_are_in_order_and_throughput_never_above_capacity(
    model: str, gpu: str, pair: tuple[str, str], rate: float, replicas: int, slots: int, arrival: str, cv: float
) -> None:
    traffic = Traffic(
        arrival="poisson" if arrival == "poisson" else "constant",
        requests_per_second=rate,
        prompt_tokens=Tokens(mean=256, cv=cv),
        output_tokens=Tokens(mean=64, cv=cv),
    )
    found = planner.predict(timing(model, gpu, pair), slots=slots, replicas=replicas, traffic=traffic)
    assert found.requests_per_second <= found.capacity * (1 + 1e-9)
    if found.saturated:
        assert math.isinf(found.e2e_p95_seconds)
        return
    assert found.requests_per_second == pytest.approx(rate, rel=1e-3)
    for name in ("ttft", "itl", "e2e"):
        middle, late = (getattr(found, f"{name}_{part}_seconds") for part in ("p50", "p95"))
        assert 0 < middle <= late * (1 + 1e-9) < math.inf


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 400), st.sampled_from([0.0, 5.0]))
def test_littles_law_holds_in_closed_loops(replicas: int, users: int, think: float) -> None:
    times = timing("gemma-3-4b-it", "nvidia-l4", ("ollama", "q4-k-m"))
    found = planner.predict(times, slots=8, replicas=replicas, traffic=closed(users, think, 128))
    inside = (found.running + found.waiting) * replicas
    assert inside + found.requests_per_second * think == pytest.approx(users, rel=1e-6)


@given(st.sampled_from([(g.id, p.name) for g in CATALOG.gpus.values() for p in g.mig.values()]))
def test_slices_never_add_up_to_more_than_the_card(pair: tuple[str, str]) -> None:
    gpu = CATALOG.gpu(pair[0])
    profile = gpu.mig[pair[1]]
    assert profile.count * profile.memory_bytes <= gpu.memory_bytes
    assert profile.count * profile.bandwidth_share <= 1
    assert profile.count * profile.compute_share <= 1


@settings(max_examples=25, deadline=None)
@given(MODELS, st.sampled_from(["a100", "a100-80gb", "h100"]), st.integers(1, 2000))
def test_no_plan_cuts_more_out_of_a_card_than_it_has(model: str, gpu: str, users: int) -> None:
    found = planner.choices(planner.Search(model=model, traffic=closed(users, 0.0, 64), gpus=[gpu]))
    card = CATALOG.gpu(gpu)
    for choice in found:
        machine = CATALOG.machine(choice.machine_type)
        if choice.mig_profile is None:
            assert choice.replicas_per_node * choice.tensor <= machine.gpus
            continue
        slice_ = card.mig[choice.mig_profile]
        assert choice.replicas_per_node * slice_.memory_bytes <= machine.gpus * card.memory_bytes
        assert choice.replicas_per_node * slice_.bandwidth_share <= machine.gpus
        assert choice.replicas_per_node * slice_.compute_share <= machine.gpus


@settings(max_examples=25, deadline=None)
@given(MODELS, GPUS, PAIRS, st.integers(1, 2000))
def test_choices_cost_their_nodes_and_the_front_trades_cost_for_latency(
    model: str, gpu: str, pair: tuple[str, str], users: int
) -> None:
    search = planner.Search(
        model=model,
        traffic=closed(users, 0.0, 64),
        gpus=[gpu],
        engines=[pair[0]],
        quantizations=[pair[1]],
    )
    found = planner.choices(search)
    assume(found)
    book = planner.price_book()
    for choice in found:
        assert 1 <= choice.slots <= 512
        price = float(book.price(choice.machine_type, region="us-central1").on_demand)
        assert choice.cost_per_hour == pytest.approx(choice.nodes * price)
    front = planner.frontier(search)
    costs = [choice.cost_per_hour for choice in front]
    latencies = [choice.predicted["e2e_p95_seconds"] for choice in front]
    assert costs == sorted(costs)
    assert latencies == sorted(latencies, reverse=True)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([m.id for m in CATALOG.machines.values() if m.gpu == "nvidia-l4"]),
    st.integers(1, 200),
    st.integers(1, 200),
    st.booleans(),
    st.integers(1, 3000),
)
def test_cost_never_falls_with_nodes_and_neither_does_throughput(
    machine: str, nodes: int, more: int, spot: bool, users: int
) -> None:
    def planned(count: int) -> planner.Plan:
        fleet = Fleet(machine_type=machine, nodes=Nodes(min=count, max=count), spot=spot)
        return planner.plan_for(release=RELEASE, fleet=fleet, traffic=closed(users, 0.0, 64))

    few, many = planned(nodes), planned(nodes + more)
    assert many.cost_per_hour_expected_usd > few.cost_per_hour_expected_usd
    assert many.cost_per_month_usd > few.cost_per_month_usd
    assert many.cost_per_hour_expected_usd / (nodes + more) == pytest.approx(few.cost_per_hour_expected_usd / nodes)
    assert many.predicted["requests_per_second"] >= few.predicted["requests_per_second"] * (1 - 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    MODELS,
    st.integers(1, 3000),
    st.sampled_from([0.0, 10.0]),
    st.floats(0.5, 30),
    st.sampled_from([None, "ttft_p95_seconds", "e2e_p95_seconds", "cost_per_million_tokens_usd"]),
    st.sampled_from([None, 20.0, 200.0]),
)
def test_the_cheapest_is_the_first_of_all_choices(
    model: str, users: int, think: float, limit: float, promise: str | None, budget: float | None
) -> None:
    search = planner.Search(
        model=model,
        traffic=closed(users, think, 64),
        objectives=Objectives.model_validate({promise: limit}) if promise else None,
        budget=budget,
        gpus=["l4", "h100"],
    )
    first, cheapest = next(iter(planner.choices(search)), None), planner.cheapest(search)
    assert (first is None) is (cheapest is None)
    if first is not None and cheapest is not None:
        assert len(cheapest.unmet) == len(first.unmet)
        assert cheapest.cost_per_hour == pytest.approx(first.cost_per_hour)
        assert cheapest.predicted["e2e_p95_seconds"] == pytest.approx(first.predicted["e2e_p95_seconds"])
