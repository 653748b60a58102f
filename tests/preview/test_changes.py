"""Cost and node changes: the arithmetic by hand, the words, what has no price, and what a hostile name may not do."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import preview as room
from preview import Change, Evidence, Finding, Shape

TODAY = date(2026, 11, 21)
L4 = Decimal("0.8536")
DISK = (Decimal("0.10") / 730).quantize(Decimal("1e-12"))


def node_pool(name: str = "gpu-pool", **given: Any) -> dict[str, Any]:
    config = {
        "machineType": given.get("machine", "g2-standard-8"),
        "spot": given.get("spot", False),
        "guestAccelerators": [{"type": given.get("gpu", "nvidia-l4"), "count": 1}],
        "diskSizeGb": 200.0,
        "diskType": "pd-balanced",
    }
    low, high = given.get("low", 10), given.get("high", 10)
    return {
        "type": "gcp:container/nodePool:NodePool",
        "name": name,
        "parent": given.get("parent", "tollgate:index:GpuPool::gpu-pool"),
        "inputs": {
            "location": given.get("region", "us-central1"),
            "initialNodeCount": 1.0,
            "autoscaling": {"totalMinNodeCount": low, "totalMaxNodeCount": high},
            "nodeConfig": config,
        },
    }


def resources(nodes: int = 10, slots: int = 8, **given: Any) -> list[dict[str, Any]]:
    """A stack on GKE: platform, GPU pool with its node pool, cluster."""
    low, high = given.get("low", nodes), given.get("high", nodes)
    pool = {
        "pool": "prod",
        "machineType": given.get("machine", "g2-standard-8"),
        "gpu": "nvidia-l4",
        "region": given.get("region", "us-central1"),
        "spot": given.get("spot", False),
        "nodesMin": low,
        "nodesExpected": nodes,
        "nodesMax": high,
    }
    platform = {"release": "r", "digest": f"sha256:{slots}", "engine": "ollama", "model": "m", "slots": slots}
    return [
        {"type": "tollgate:index:Platform", "name": "platform", "inputs": platform, "parent": None},
        {"type": "tollgate:index:Cluster", "name": "cluster", "inputs": {"target": "gke"}, "parent": None},
        {"type": "tollgate:index:GpuPool", "name": "gpu-pool", "inputs": pool, "parent": None},
        node_pool(low=low, high=high, **{key: given[key] for key in ("machine", "spot", "region") if key in given}),
        {
            "type": "gcp:container/cluster:Cluster",
            "name": "cluster",
            "inputs": {"location": "us-central1", "removeDefaultNodePool": True},
            "parent": None,
            "protect": True,
        },
    ]


def made(nodes: int = 10, slots: int = 8, plan: dict[str, Any] | None = None, **given: Any) -> Shape:
    return room.shape(given.pop("stack", "prod"), resources(nodes, slots, **given), room.prices(), plan=plan)


def change(before: Shape | None, after: Shape | None, **given: Any) -> Change:
    return Change(stack="prod", before=before, after=after, **given)


def document(*changes: Change, **given: Any) -> room.Report:
    return room.report(changes, source="offline", base="main", book="book.csv", today=TODAY, **given)


def test_ten_l4_nodes_cost_their_machines_their_disks_and_the_cluster() -> None:
    assert made().hourly("expected") == 10 * L4 + 2000 * DISK + Decimal("0.10")
    assert room.money(made().hourly("expected")) == "$8.91"


def test_a_pool_from_zero_is_counted_at_what_is_expected_and_at_most_never_at_its_minimum_alone() -> None:
    found = made(nodes=4, low=0, high=10)
    pools = [found.nodes(level) for level in room.LEVELS]
    assert pools == [0, 4, 10]
    assert found.hourly("expected") == 4 * L4 + 800 * DISK + Decimal("0.10")
    assert found.hourly("max") > found.hourly("expected") > found.hourly("min") == Decimal("0.10")


def test_a_day_makes_the_mean_of_the_nodes_and_leaves_the_peak() -> None:
    plan = {"nodes_peak": 10, "nodes_expected": "6.25", "output_tokens_per_second": "1000"}
    found = made(nodes=10, low=0, high=12, plan=plan)
    (pool,) = found.gpu_pools
    assert (pool.quantity.expected, pool.quantity.peak, pool.quantity.max) == (Decimal("6.25"), 10, 12)
    # 6.25 nodes, their disks and the cluster, over 3.6 million tokens an hour.
    hourly = Decimal("6.25") * (L4 + 200 * DISK) + Decimal("0.10")
    assert found.usd_per_million_tokens == (hourly / Decimal("3.6")).quantize(Decimal("0.0001"))


def test_a_spot_pool_with_a_fallback_is_spot_as_expected_and_on_demand_at_most() -> None:
    given = resources(nodes=4, low=2, high=6, spot=True)
    given.append(node_pool("gpu-pool-on-demand", low=0, high=6, spot=False))
    found = room.shape("prod", given, room.prices())
    spot = Decimal("0.4799")
    disks = [2, 4, 6]
    machines = [2 * spot, 4 * spot, 6 * L4]
    for level, nodes, usd in zip(room.LEVELS, disks, machines, strict=True):
        assert found.nodes(level) == nodes
        assert found.hourly(level) == usd + nodes * 200 * DISK + Decimal("0.10")


def test_a_pool_of_another_program_is_counted_per_zone_and_as_it_is_made() -> None:
    pool = node_pool(parent=None)
    pool["inputs"]["autoscaling"] = {"minNodeCount": 1, "maxNodeCount": 4}
    pool["inputs"]["nodeLocations"] = ["us-central1-a", "us-central1-b"]
    found = room.shape("other", [pool], room.prices())
    assert [found.nodes(level) for level in room.LEVELS] == [2, 2, 8]
    assert found.gpu_pools[0].words == "g2-standard-8, 1 × nvidia-l4, us-central1-a, us-central1-b, on demand"


def test_the_nodes_that_a_cluster_brings_itself_are_counted_and_autopilot_is_named() -> None:
    def cluster(**inputs: Any) -> Shape:
        kind = "gcp:container/cluster:Cluster"
        one = {"type": kind, "name": "c", "parent": None, "inputs": {"location": "us-central1-a", **inputs}}
        return room.shape("other", [one], room.prices())

    default = cluster(initialNodeCount=2, nodeConfig={"machineType": "e2-standard-4"})
    e2, fee = Decimal("0.13402284"), Decimal("0.10")
    assert default.hourly("expected") == 2 * e2 + 200 * DISK + fee
    inline = cluster(nodePools=[{"name": "a", "nodeCount": 3, "nodeConfig": {"machineType": "e2-standard-4"}}])
    assert [pool.name for pool in inline.pools] == ["c/a"]
    assert inline.hourly("expected") == 3 * e2 + 300 * DISK + fee
    assert cluster(removeDefaultNodePool=True, initialNodeCount=1).hourly("expected") == fee
    assert [entry.name for entry in cluster(enableAutopilot=True).unpriced] == ["pods of c"]


def test_an_unknown_resource_of_a_cloud_is_named_and_never_free() -> None:
    given = [{"type": "gcp:sql/databaseInstance:DatabaseInstance", "name": "db", "inputs": {}, "parent": None}]
    (entry,) = room.shape("other", given, room.prices()).unpriced
    assert entry.name == "db"
    assert "databaseInstance" in entry.why


def test_an_external_gateway_brings_a_rule_and_what_leaves_through_it() -> None:
    service = {"type": "kubernetes:core/v1:Service", "name": "gateway-service", "parent": None}
    given = [*resources(), {**service, "inputs": {"spec": {"type": "LoadBalancer"}}}]
    plan = {"nodes_peak": 10, "nodes_expected": 10, "output_tokens_per_second": "1000", "predicted": {}}
    found = room.shape("prod", given, room.prices(), plan=plan)
    by_kind = {item.kind: item for item in found.items}
    assert by_kind["load-balancer"].cost("expected") == Decimal("0.025")
    # 1000 tokens/s of 210 bytes are 0.704 GiB an hour, at 0.12 USD each.
    assert by_kind["egress"].cost("expected") == Decimal("0.704080") * Decimal("0.12")
    assert by_kind["egress"].cost("min") == 0
    assert "data into gateway-service" in {entry.name for entry in found.unpriced}


def test_the_headline_says_nodes_at_peak_dollars_share_and_latency() -> None:
    before = made(10, plan={"nodes_peak": 10, "nodes_expected": 10, "predicted": {"e2e_p95_seconds": 2.7}})
    after = made(15, plan={"nodes_peak": 15, "nodes_expected": 15, "predicted": {"e2e_p95_seconds": 1.4}})
    # 5 × (0.8536 + 200 × 0.1 / 730) = 4.405 on 8.910.
    expected = "prod: +5 g2-standard-8 at peak, +$4.40/h expected (+49 %), p95 latency 2.7 → 1.4 s by plan"
    assert change(before, after).headline == expected


def test_a_change_of_the_release_is_said_in_words() -> None:
    assert change(made(slots=8), made(slots=16)).headline == "prod: slots 8 → 16"


def test_a_promise_that_breaks_by_plan_is_red() -> None:
    after = made(plan={"nodes_peak": 10, "nodes_expected": 10, "unmet": ["e2e_p95_seconds"]})
    before = made(plan={"nodes_peak": 10, "nodes_expected": 10})
    report = document(change(before, after))
    assert room.alerts(report)[0] == ["prod: BREAKS ITS PROMISE of e2e_p95_seconds by plan"]
    assert "> [!CAUTION]" in room.markdown(report)


def test_the_gate_taken_away_is_in_capitals_and_red() -> None:
    def gated(**facts: Any) -> Shape:
        one = {"type": "tollgate:index:PromotionCheck", "name": "promotion-check", "inputs": facts, "parent": None}
        return room.shape("prod", [*resources(), one], room.prices())

    before = gated(gated=True, after="staging", criteria={"min_runs": 5.0, "headroom": 1.2})
    report = document(change(before, gated(gated=False, after=None, criteria=None)))
    assert "GATE IS TAKEN AWAY" in report.headline
    assert "GATE IS TAKEN AWAY" in room.alerts(report)[0][0]
    softer = gated(gated=True, after="staging", criteria={"min_runs": 3.0, "headroom": 1.2})
    assert change(before, softer).gate_words == ("gate: min_runs 5 → 3",)


def test_nothing_changed_is_one_sentence_no_table_and_no_comment() -> None:
    report = document(change(made(), made()))
    assert report.headline == "no change in 1 stack"
    assert not report.worth_a_comment
    assert "|" not in room.markdown(report)


def test_a_change_below_the_limit_is_no_comment_and_one_of_the_release_is() -> None:
    quiet = room.Limits(comment_above_usd_per_hour=Decimal(10))
    assert not document(change(made(10), made(11)), limits=quiet).worth_a_comment
    assert document(change(made(10), made(30)), limits=quiet).worth_a_comment
    assert document(change(made(slots=8), made(slots=16)), limits=quiet).worth_a_comment


def test_a_machine_without_a_price_is_named_everywhere_and_is_nowhere_zero() -> None:
    report = document(change(made(), made(nodes=4, machine="x9-mega")))
    text = room.markdown(report)
    assert "cost not known: x9-mega UNPRICED" in report.headline
    assert "x9-mega: no on demand price of x9-mega in us-central1" in text
    assert "+ unpriced" in text
    assert "−$" not in report.headline
    (stack,) = report.stacks
    assert stack.partial_after
    assert stack.usd_per_million_tokens_after is None
    shaped = room.infracost(report, datetime.now(UTC))["projects"][0]["breakdown"]["resources"]
    (pool,) = (entry for entry in shaped if entry["resourceType"] == "gpu-pool")
    assert pool["hourlyCost"] is None
    assert pool["costComponents"][0]["priceNotFound"] is True


def test_what_is_wholly_unpriced_says_so_instead_of_a_sum() -> None:
    pool = node_pool(machine="x9-mega", region="mars-east1")
    report = document(change(None, room.shape("prod", [pool], room.prices())))
    assert "| unpriced | unpriced |" in room.markdown(report)
    assert "$0.00" not in room.markdown(report)


def test_removed_and_new_stacks_are_said() -> None:
    assert change(None, made()).headline == "prod: new, 10 g2-standard-8 at peak, $8.91/h expected"
    assert change(made(), None).headline == "prod: removed, −$8.91/h expected"


def test_several_new_stacks_are_one_sum() -> None:
    changes = [Change(stack=name, before=None, after=made()) for name in ("a", "b")]
    assert document(*changes).headline == "2 new stacks: $17.82/h expected in all"


def test_a_broken_program_is_said_where_its_numbers_would_be_with_its_whole_reason_folded() -> None:
    broken = Change(stack="dev", error="stacks/Pulumi.dev.yaml, line 3\n  fix:     write it", input_error=True)
    report = document(broken, change(made(), made()))
    text = room.markdown(report)
    assert "dev: cannot be evaluated: stacks/Pulumi.dev.yaml, line 3" in text
    assert "fix:     write it" in text
    assert report.exit_code == 2
    raised = document(Change(stack="dev", error="division by zero"))
    assert raised.exit_code == 1


def test_old_prices_are_said_with_their_age() -> None:
    report = document(change(made(), made()), limits=room.Limits(old_prices_days=30))
    assert report.prices.oldest == "2026-07-01"
    assert report.prices.days == 143
    assert [finding.rule for finding in report.findings] == ["old prices"]
    assert "(143 days)" in room.markdown(report)


def test_evidence_is_said_where_the_gate_would_ask_for_it() -> None:
    missing = Evidence(state="missing", words="none of release abc on staging")
    text = room.markdown(document(change(made(slots=8), made(slots=16), evidence=missing)))
    assert "**evidence** none of release abc on staging" in text


def test_the_comment_begins_with_the_marker_by_which_it_is_found_again() -> None:
    assert room.markdown(document()).startswith(room.MARKER)


def test_a_comment_that_would_be_too_long_loses_its_details_first() -> None:
    changes = [
        Change(stack=f"stack-{number:03d}", before=made(number), after=made(number + 1)) for number in range(120)
    ]
    report = document(*changes)
    whole = room.markdown(report, most=10**9)
    short = room.markdown(report, most=60_000)
    assert len(whole) > 60_000 >= len(short)
    assert "<details>" in whole
    assert "<details>" not in short
    assert short.startswith(room.MARKER)
    assert "120 of 120 stacks change" in room.markdown(report, most=4_000)


HOSTILE = ["<script>alert(1)</script>", "a|b", "`x`", "line\nbreak", "@team", "[x](https://evil.example)", "*b*"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_does_not_become_markup(name: str) -> None:
    after = room.shape(name, [*resources(machine=name), node_pool(name, parent=None)], room.prices())
    report = document(
        Change(stack=name, before=None, after=after, base_error=name),
        limits=room.Limits(rules=(room.Limits.model_validate({"rules": [_rule(name)]}).rules[0],)),
    )
    for text in (room.markdown(report), room.page(report)):
        assert "<script>" not in text
    text = room.markdown(report)
    assert "line\nbreak" not in text
    assert "`x`" not in text
    assert "@team" not in text
    assert "[x](" not in text
    assert "a|b" not in text.replace("a\\|b", "")


def _rule(message: str) -> dict[str, Any]:
    return {"name": "no", "message": message + " is not wanted", "machine_types": ["*"]}


def test_the_json_reads_back_as_it_was_and_fits_its_schema() -> None:
    report = document(
        change(made(10), made(15, slots=16)), Change(stack="dev", error="no"), change(made(), made(machine="x9"))
    )
    text = room.as_json(report)
    assert room.from_json(text) == report
    jsonschema_rs.validate(room.report_schema(), json.loads(text))
    assert json.loads(text)["stacks"][0]["totals"]["expected"]["usd_per_hour_after"]


def test_another_document_is_refused_by_name() -> None:
    with pytest.raises(Exception, match=r"--from, source"):
        room.from_json('{"schema_version": 1}')


def test_the_page_needs_no_network_and_shows_both_figures() -> None:
    text = room.page(document(change(made(10), made(15))))
    assert "http" not in text.replace("http-equiv", "")
    assert "$8.91 → $13.31" in text


def test_infracost_s_shape_adds_up() -> None:
    found = room.infracost(document(change(made(10), made(15))), datetime.now(UTC))
    past, now, diff = (
        Decimal(found[name]) for name in ("pastTotalHourlyCost", "totalHourlyCost", "diffTotalHourlyCost")
    )
    assert past + diff == now
    assert now == made(15).hourly("expected")


# What infracost/infracost's own schema/infracost.schema.json (version 0.2) requires, and allows nothing beside.
INFRACOST = {
    "": {"version", "metadata", "currency", "projects", "totalHourlyCost", "totalMonthlyCost", "pastTotalHourlyCost",
         "pastTotalMonthlyCost", "diffTotalHourlyCost", "diffTotalMonthlyCost", "timeGenerated", "summary"},
    "metadata": {"infracostCommand", "vcsBranch", "vcsCommitSha", "vcsCommitAuthorName", "vcsCommitAuthorEmail",
                 "vcsCommitTimestamp", "vcsCommitMessage"},
    "project": {"name", "displayName", "metadata", "pastBreakdown", "breakdown", "diff", "summary"},
    "breakdown": {"resources", "totalHourlyCost", "totalMonthlyCost", "totalMonthlyUsageCost"},
    "component": {"name", "unit", "hourlyQuantity", "monthlyQuantity", "price", "hourlyCost", "monthlyCost", "priceNotFound"},
}  # fmt: skip


def test_infracost_s_shape_has_what_its_readers_require_and_says_what_is_broken_or_unpriced() -> None:
    broken = Change(stack="dev", error="no such release")
    found = room.infracost(document(change(made(10), made(15, machine="x9-mega")), broken), datetime.now(UTC))
    assert set(found) == INFRACOST[""]
    assert set(found["metadata"]) >= INFRACOST["metadata"]
    first, second = found["projects"]
    assert set(first) == INFRACOST["project"]
    assert [first["metadata"]["path"], second["metadata"]["path"]] == [
        "stacks/Pulumi.dev.yaml",
        "stacks/Pulumi.prod.yaml",
    ]
    assert first["metadata"]["errors"][0]["message"] == "no such release"
    for part in ("pastBreakdown", "breakdown", "diff"):
        assert set(second[part]) == INFRACOST["breakdown"]
    (pool,) = (one for one in second["breakdown"]["resources"] if one["resourceType"] == "gpu-pool")
    (component,) = pool["costComponents"]
    assert set(component) == {*INFRACOST["component"], "usageBased"}
    assert (component["price"], component["hourlyCost"], component["priceNotFound"]) == (None, None, True)
    assert found["summary"]["totalUnsupportedResources"] == 1


counts = st.integers(0, 400)


@given(before=counts, after=counts, high=counts)
@settings(deadline=None)
def test_before_and_change_are_after_to_the_last_digit_at_every_level(before: int, after: int, high: int) -> None:
    old, new = made(before, low=0, high=max(before, high)), made(after, low=0, high=max(after, high))
    one = change(old, new)
    for level in room.LEVELS:
        amounts = one.amounts(level)
        assert amounts.usd_per_hour_before + amounts.usd_per_hour_change == amounts.usd_per_hour_after
        assert amounts.usd_per_month_before + amounts.usd_per_month_change == amounts.usd_per_month_after
    assert one.amounts("expected").usd_per_hour_change == (after - before) * (L4 + 200 * DISK)
    assert (one.status == "unchanged") is (old == new)


def dollars_in(text: str) -> Decimal:
    return Decimal(text.replace("$", "").replace(",", "").replace("−", "-").replace("+", ""))


@given(before=counts, after=counts, other=counts)
@settings(deadline=None, max_examples=60)
def test_what_is_shown_adds_up_to_the_cent_too(before: int, after: int, other: int) -> None:
    """Three sums that are each rounded on their own would not: 0.004 + 0.004 = 0.008 reads 0.00 + 0.00 = 0.01."""
    one = change(made(before), made(after))
    report = document(one, Change(stack="test", before=made(after), after=made(other)))
    steps = []
    for stack in report.stacks:
        alone = room.markdown(report.model_copy(update={"stacks": (stack,)}))
        row = next((line for line in alone.splitlines() if "| expected |" in line), "")
        said = re.search(r"([+−]\$[\d.,]+)/h expected", stack.headline)
        steps.append(dollars_in(said.group(1)) if said else Decimal(0))
        if " → " in row:
            was, now = (dollars_in(cell) for cell in row.split("|")[4].split(" → "))
            assert was + steps[-1] == now
    whole = re.search(r"([+−]\$[\d.,]+)/h expected in all", report.headline)
    assert whole is None or dollars_in(whole.group(1)) == sum(steps)


@given(nodes=counts, slots=st.integers(1, 64), spot=st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_difference_of_a_stack_with_itself_is_empty(nodes: int, slots: int, spot: bool) -> None:
    given = resources(nodes, slots, spot=spot)
    one = change(
        made(nodes, slots, spot=spot),
        made(nodes, slots, spot=spot),
        events=room.events(given, given),
        counts=room.counts(given, given),
    )
    assert one.status == "unchanged"
    assert one.release_words == one.gate_words == one.plan_words == one.events == ()
    assert all(one.amounts(level).usd_per_hour_change == 0 for level in room.LEVELS)


@given(seed=st.integers(0, 10_000), nodes=counts)
@settings(deadline=None, max_examples=30)
def test_the_order_of_resources_and_of_stacks_does_not_matter(seed: int, nodes: int) -> None:
    given, other = resources(nodes), resources(nodes + 1)
    mixed, mixed_other = given[:], other[:]
    random.Random(seed).shuffle(mixed)
    random.Random(seed + 1).shuffle(mixed_other)
    assert room.shape("prod", given, room.prices()) == room.shape("prod", mixed, room.prices())
    assert room.events(given, other) == room.events(mixed, mixed_other)
    assert room.counts(given, other) == room.counts(mixed, mixed_other)
    changes = [Change(stack=name, before=made(nodes), after=made(nodes + 1)) for name in "abc"]
    assert document(*changes) == document(*reversed(changes))


def test_a_finding_of_a_limit_gives_exit_code_four() -> None:
    limits = room.Limits.model_validate({"budgets": [{"fail": {"usd_per_hour": "10"}}]})
    report = document(change(made(10), made(15)), limits=limits)
    assert report.exit_code == room.OVER_A_LIMIT == 4
    assert isinstance(report.findings[0], Finding)
    assert report.findings[0].message == "prod: $13.31/h is above the limit of $10.00/h (expected)"


def test_a_document_from_a_job_without_rights_cannot_smuggle_markup_into_one_with() -> None:
    evil = "</sub>\n\n# <img src=x> `now` @team"
    given = json.loads(room.as_json(document(change(made(), made(slots=16)))))
    given |= {"base": evil, "headline": evil}
    given["prices"] |= {"book": evil, "oldest": evil}
    for line in given["stacks"][0]["resources"]:
        line["after"] |= {"unit": evil, "note": evil, "name": evil}
    text = room.markdown(room.from_json(json.dumps(given)))
    assert "\n# " not in text
    assert "<img" not in text.replace("against `</sub> # <img src=x> now @team`", "")
    assert "<img" not in room.page(room.from_json(json.dumps(given)))
