"""Approvals, rollbacks, pull requests, pipelines with several regions, and what each leaves behind."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import gate
import stacks

B, C = "sha256:" + "b2" * 32, "sha256:" + "c3" * 32


def approve(
    world: Any,
    *criteria: str,
    now: datetime | None = None,
    days: float = 1,
    who: str = "Ada",
    why: str = "a known quirk of this week",
    release: str | None = None,
) -> gate.Approval:
    now = now or world.now
    from datetime import timedelta

    return gate.approve(
        world.stack("local-prod"),
        release_name="gemma-8",
        release_digest=release or world.digest,
        who=who,
        why=why,
        criteria=criteria,
        expires=now + timedelta(days=days),
        root=world.root,
        now=now,
    )


# Overrides.


def test_an_override_lets_its_criterion_through_and_is_seen_in_every_later_report(world: Any) -> None:
    world.record(world.result({**world.good, "e2e_p95_seconds": 9.9}))
    approve(world, "e2e_p95_seconds", "scale")
    admission, _ = world.promote()
    assert admission.verdict.outcome == "pass"
    assert len(admission.approvals) == 1
    again = world.check(world.later(hours=1))
    (line, *_) = again.verdict.approved
    assert line.startswith(
        "e2e_p95_seconds: fail (the whole bound breaks the limit), approved by Ada until 2026-11-22 12:00 UTC"
    )
    assert "a known quirk of this week" in gate.table(again.verdict)


def test_an_override_that_has_expired_is_named_and_closes_the_gate(world: Any) -> None:
    world.criteria("max_evidence_age_hours: 240")
    world.record(world.result({**world.good, "e2e_p95_seconds": 9.9}))
    approve(world, "e2e_p95_seconds", "scale")
    world.promote()
    said = world.refused("e2e_p95_seconds .*fail", world.later(hours=25))
    assert "the approval by Ada expired 2026-11-22 12:00 UTC" in said


def test_an_override_covers_nothing_else(world: Any) -> None:
    world.record(world.result(world.slow))
    approve(world, "e2e_p95_seconds")
    said = world.not_promoted("requests_per_second .*fail")
    assert "approved by Ada" in said


def test_an_override_is_of_one_release_on_one_stack(world: Any) -> None:
    world.record(world.result({**world.good, "e2e_p95_seconds": 9.9}, release=B))
    approve(world, "e2e_p95_seconds", "scale")
    world.not_promoted("e2e_p95_seconds .*fail", release=B)


@pytest.mark.parametrize("criterion", ["subject", "promotion", "policy", "approvals", "runs ", "everything"])
def test_what_ties_evidence_to_the_release_cannot_be_overridden(world: Any, criterion: str) -> None:
    with pytest.raises(stacks.InputError, match="name criteria as the refusal names them"):
        approve(world, criterion)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"who": " "}, "say who answers for it"),
        ({"why": "because"}, "say why"),
        ({"days": 0}, "within 90 days"),
        ({"days": 91}, "within 90 days"),
    ],
)
def test_a_vague_override_is_refused(world: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(stacks.InputError, match=said):
        approve(world, "scale", **more)
    assert world.files() == []


# Required approvals.


def key_of(world: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this person signs."""
    key = Ed25519PrivateKey.generate()
    keys = world.root / "stacks" / "keys"
    keys.mkdir(exist_ok=True)
    (keys / f"{name}.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", private.decode())


def test_two_approvals_have_to_be_by_two_keys(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.criteria("approvals: 2")
    key_of(world, "ada", monkeypatch)
    world.record()
    approve(world)
    approve(world, who="Somebody else", why="the same key again")
    world.not_promoted(r"approvals +≥ 2 +1 .*inconclusive .*each counts once per signing key")
    key_of(world, "grace", monkeypatch)
    approve(world, who="Grace", why="looked at the numbers")
    assert world.promote()[1]
    assert [event.by for event in gate.history("local-prod", world.root)] == ["ada", "ada", "grace", "grace"]
    world.refused(r"approvals +≥ 2 +0 .*nobody yet", world.later(hours=30))


# Rollback.


def releases(found: Sequence[str]) -> Any:
    """Digests by the slots of a release file, as values.release_digest would give them."""

    def digest_of(release: stacks.Release) -> str:
        return {8: found[0], 1: found[1]}[int(release.parallelism.slots)]

    return digest_of


def two_promoted(world: Any) -> None:
    """gemma-8 (the world's digest), then gemma-1 (B) run on production."""
    world.record()
    world.promote()
    world.edit("Pulumi.local-dev.yaml", "gemma-8", "gemma-1")
    world.record(world.result(release=B, server={"slots": 1}, started=world.later(hours=1)), world.later(hours=1))
    world.promote(world.later(hours=1), B)
    assert world.stack("local-prod").release.name == "gemma-1"


def test_a_rollback_returns_to_the_release_before_and_says_what_it_was(world: Any) -> None:
    two_promoted(world)
    _, decision = gate.rollback(
        "local-prod", world.root, digest_of=releases([world.digest, B]), why="users wait", now=world.later(hours=2)
    )
    assert (decision.release_name, decision.release) == ("gemma-8", world.digest)
    assert world.stack("local-prod").release.name == "gemma-8"
    assert world.check(world.later(hours=3)).gated
    last = gate.history("local-prod", world.root)[-1]
    assert (last.kind, last.release_name) == ("rollback", "gemma-8")
    assert "users wait" in last.what


def test_a_rollback_is_possible_after_the_evidence_has_expired(world: Any) -> None:
    two_promoted(world)
    late = world.later(days=60)
    gate.rollback("local-prod", world.root, digest_of=releases([world.digest, B]), why="users wait", now=late)
    admission = world.check(world.later(days=61))
    age = next(line for line in admission.verdict.criteria if line.metric == "age")
    assert (age.outcome, age.needed) == ("pass", "any: a rollback")


def test_what_was_rolled_back_from_is_not_returned_to_by_the_next_rollback(world: Any) -> None:
    two_promoted(world)
    digest_of = releases([world.digest, B])
    gate.rollback("local-prod", world.root, digest_of=digest_of, why="users wait", now=world.later(hours=2))
    with pytest.raises(gate.GateRefused, match="no passing release to return to"):
        gate.rollback("local-prod", world.root, digest_of=digest_of, why="again, please", now=world.later(hours=3))


def test_a_rollback_to_a_release_whose_file_changed_says_how_to_restore_it(world: Any) -> None:
    two_promoted(world)
    with pytest.raises(gate.GateRefused, match=r"gemma-8: stacks/releases/gemma-8\.yaml is another release now"):
        gate.rollback("local-prod", world.root, digest_of=releases([C, B]), why="users wait", now=world.later(hours=2))
    assert world.stack("local-prod").release.name == "gemma-1"


def test_a_rollback_to_a_release_that_no_longer_keeps_the_promise_is_refused(world: Any) -> None:
    two_promoted(world)
    world.edit("Pulumi.local-prod.yaml", "e2e_p95_seconds: 5", "e2e_p95_seconds: 2")
    with pytest.raises(gate.GateRefused, match="gemma-8: fail, e2e_p95_seconds"):
        gate.rollback(
            "local-prod", world.root, digest_of=releases([world.digest, B]), why="users wait", now=world.later(hours=2)
        )


def test_without_anything_before_there_is_nothing_to_return_to(world: Any) -> None:
    world.record()
    world.promote()
    with pytest.raises(gate.GateRefused, match="nothing else was ever promoted into it"):
        gate.rollback("local-prod", world.root, digest_of=releases([world.digest, B]), why="why not", now=world.now)


def test_a_stack_that_is_not_gated_has_no_rollback(world: Any) -> None:
    with pytest.raises(stacks.InputError, match="a stack that takes releases from another"):
        gate.rollback("local-dev", world.root, digest_of=releases([B, C]), why="why not", now=world.now)


# Pull requests.


def git(world: Any, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", *arguments]
    return subprocess.run(command, cwd=world.root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ada@example.com")
    (world.root / ".gitignore").write_text(".tollgate\n")
    git(world, "init", "-q", "-b", "main")
    git(world, "add", ".")
    git(world, "commit", "-q", "-m", "all")
    return world


def propose(world: Any, now: datetime | None = None) -> gate.PullRequest:
    return gate.propose("local-dev", "local-prod", world.root, release_digest=world.digest, now=now or world.now)


def test_a_pull_request_is_a_branch_with_one_edit_and_leaves_the_working_tree_alone(repository: Any) -> None:
    world = repository
    evidence = world.record()
    (world.root / "notes.txt").write_text("not committed\n")
    request = propose(world)
    assert request.branch == "promote/local-prod/gemma-8-a1a1a1a1"
    assert git(world, "diff", "--name-only", "main", request.branch).split() == ["stacks/Pulumi.local-prod.yaml"]
    assert git(world, "status", "--porcelain").split() == ["??", "notes.txt"]
    assert world.stack("local-prod").promotion is None
    assert evidence.digest in request.body
    assert "| e2e_p95_seconds | ≤ 5 s | 3.1 |" in request.body
    # What the branch says is admitted once it is merged.
    git(world, "merge", "-q", request.branch)
    assert world.check().gated


def test_the_same_pull_request_twice_is_one_commit(repository: Any) -> None:
    world = repository
    world.record()
    first, second = propose(world), propose(world, world.later(minutes=5))
    assert first.commit == second.commit
    assert git(world, "rev-list", "--count", f"main..{first.branch}").strip() == "1"


def test_a_refused_promotion_makes_no_branch(repository: Any) -> None:
    world = repository
    world.record(world.result(world.slow))
    with pytest.raises(gate.GateRefused):
        propose(world)
    assert git(world, "branch", "--list", "promote/*") == ""


def test_the_evidence_says_which_commit_it_is_of_and_whether_the_tree_was_dirty(repository: Any) -> None:
    world = repository
    head = git(world, "rev-parse", "HEAD").strip()
    assert world.record().entry.facts["source"] == {"commit": head, "dirty": False}
    (world.root / "notes.txt").write_text("not committed\n")
    assert world.record(world.result(world.slow)).entry.facts["source"] == {"commit": head, "dirty": True}


# Several stages.


def chain(world: Any) -> None:
    """local-dev, then local-other, then local-prod."""
    (world.root / "stacks" / "pipeline.yaml").write_text(
        "stages:\n  - stack: local-dev\n  - stack: local-other\n    after: local-dev\n"
        "  - stack: local-prod\n    after: local-other\n"
    )


def test_a_release_goes_through_every_stage_and_skips_none(world: Any) -> None:
    chain(world)
    world.record()
    with pytest.raises(stacks.InputError, match="local-prod takes releases from local-other"):
        world.promote()
    gate.promote("local-dev", "local-other", world.root, release_digest=world.digest, now=world.now)
    with pytest.raises(gate.GateRefused, match=r"no evidence of release gemma-8 .* on local-other"):
        gate.promote("local-other", "local-prod", world.root, release_digest=world.digest, now=world.now)
    world.record(world.result(stack="local-other"))
    gate.promote("local-other", "local-prod", world.root, release_digest=world.digest, now=world.now)
    assert world.check().gated


def test_evidence_of_the_stage_before_the_last_one_does_not_do(world: Any) -> None:
    """Replay: the record names genuine evidence of this very release, but of the first stage instead of the second."""
    chain(world)
    evidence = world.record()
    world.record(world.result(stack="local-other"))
    gate.promote("local-other", "local-prod", world.root, release_digest=world.digest, now=world.now)
    world.edit("Pulumi.local-prod.yaml", world.stack("local-prod").promotion.evidence, evidence.digest)
    world.refused(r"subject .*mismatch +the evidence is of sha256:a1a1.* on local-dev")


def test_one_edge_may_lead_to_several_regions(world: Any) -> None:
    (world.root / "stacks" / "pipeline.yaml").write_text(
        "stages:\n  - stack: local-dev\n  - stack: [local-prod, local-other]\n    after: local-dev\n"
        "    criteria: {headroom: 1.1, confidence: 0.9}\n"
    )
    world.record()
    for target in ("local-prod", "local-other"):
        admission, _ = gate.promote("local-dev", target, world.root, release_digest=world.digest, now=world.now)
        assert admission.verdict.confidence == 0.9
    path = world.root / "stacks" / "Pulumi.local-other.yaml"
    path.write_text(path.read_text().replace("users: 50", "users: 500"))
    check = gate.check(world.stack("local-prod"), release_digest=world.digest, root=world.root, now=world.now)
    assert check.gated
    with pytest.raises(gate.GateRefused, match=r"scale +≥ 550 users"):
        gate.check(world.stack("local-other"), release_digest=world.digest, root=world.root, now=world.now)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: [{stack: []}]", "at least one stack"),
        ("stages: [{stack: local-dev}, {stack: local-dev}]", "stands twice"),
        ("stages: [{stack: local-prod, after: local-dev}, {stack: local-dev}]", "does not stand before it"),
        ("stages: [{stack: local-prod, after: local-prod}]", "does not stand before it"),
        ("stages: []", "at least 1"),
        ("stages: [{stack: elsewhere}]", "write stacks/Pulumi.elsewhere.yaml or remove the stage"),
        ("stages: [{stack: local-dev, criteria: {max_regression: {speed: 0.1}}}]", "unknown metric 'speed'"),
        ("stages: [{stack: local-dev, criteria: {confidence: 1.5}}]", "less than 1"),
        ("stages: [{stack: local-dev, criteria: {min_runs: 1}}]", "greater than or equal to 2"),
    ],
)
def test_a_pipeline_that_cannot_be_meant_is_refused_on_load(world: Any, text: str, said: str) -> None:
    (world.root / "stacks" / "pipeline.yaml").write_text(text + "\n")
    with pytest.raises(stacks.InputError, match=said):
        world.promote()


# Candidates.


def beside(world: Any, now: datetime | None = None) -> gate.Admission:
    """gemma-1 (B) beside what was promoted."""
    stack = world.stack("local-prod")
    stack = stack.model_copy(update={"release": stacks.load_release("gemma-1", world.root)})
    return gate.check(stack, release_digest=B, root=world.root, now=now or world.now, candidate=True)


def test_a_candidate_is_judged_as_its_promotion_would_be(world: Any) -> None:
    world.record()
    world.promote()
    with pytest.raises(gate.GateRefused, match=r"no evidence of release gemma-1 .* on local-dev"):
        beside(world)
    world.record(world.result(world.slow, release=B, server={"slots": 1}), world.later(minutes=1))
    with pytest.raises(gate.GateRefused, match=r"e2e_p95_seconds .*fail"):
        beside(world, world.later(minutes=2))
    # What runs is not touched by it.
    assert world.check(world.later(minutes=2)).gated
    world.criteria("looks: 2")
    good = world.record(world.result(release=B, server={"slots": 1}), world.later(minutes=3))
    assert beside(world, world.later(minutes=4)).evidence == good.digest
