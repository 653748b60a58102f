"""Who is refused is told what is wrong, and nothing else: each attack has words that no other one is answered with."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

import gate
import stacks

OTHER = "sha256:" + "c3" * 32


def tampered(world: Any) -> None:
    world.record(world.result(world.slow))
    envelope = json.loads(world.files()[0].read_bytes())
    statement = base64.b64decode(envelope["payload"]).replace(b'"e2e_p95_seconds":9.9', b'"e2e_p95_seconds":3.9')
    envelope["payload"] = base64.b64encode(statement).decode()
    world.rewrite(world.files()[0], stacks.canonical_json(envelope))


def swapped(world: Any) -> None:
    world.record(world.result(world.slow))
    world.record()
    bad, good = (json.loads(path.read_bytes()) for path in world.files())
    world.rewrite(world.files()[0], stacks.canonical_json({**bad, "signatures": good["signatures"]}))


def replayed(world: Any) -> None:
    other = world.record(world.result(release=OTHER))
    world.record()
    world.promote()
    world.edit("Pulumi.local-prod.yaml", world.stack("local-prod").promotion.evidence, other.digest)


def other_gpu(world: Any) -> None:
    world.record(world.result(environment={"accelerator": "nvidia-tesla-t4"}))


def clock_set_back(world: Any) -> None:
    world.record(now=world.later(hours=3))


def truncated(world: Any) -> None:
    world.record()
    world.rewrite(world.files()[0], world.files()[0].read_bytes()[:-20])


def unreachable(world: Any) -> None:
    path = stacks.stack_path("local-prod", world.root)
    path.write_text(path.read_text() + "  tollgate:evidence: file://Pulumi.yaml\n")


def dropped_run(world: Any) -> None:
    world.record(world.result(runs=2))


def hand_edited(world: Any) -> None:
    found = world.record()
    path = stacks.stack_path("local-prod", world.root)
    record = f"from: local-dev, release: '{world.digest}', evidence: '{found.digest}', at: '2026-11-21T12:00:00Z'"
    path.write_text(path.read_text() + f"  tollgate:promotion: {{{record}}}\n")


def criterion_deleted(world: Any) -> None:
    world.record()
    world.promote()
    world.edit("Pulumi.local-prod.yaml", "    error_rate: 0.01\n", "")


def not_a_number(world: Any) -> None:
    world.record()
    world.resign(b'"warmup_seconds":2.0', b'"warmup_seconds":NaN')


def infinite(world: Any) -> None:
    world.record()
    world.resign(b'"warmup_seconds":2.0', b'"warmup_seconds":1e999')


def three_requests(world: Any) -> None:
    world.record(world.result(sent=3))


WORDS: dict[Callable[[Any], None], str] = {
    tampered: "the signature does not fit the statement; one of the two was changed",
    swapped: r"bears the signature of 000002\.json; signatures were swapped or copied",
    replayed: "the evidence is of sha256:c3c3c3",
    other_gpu: "accelerator was 'nvidia-tesla-t4', here 'nvidia-l4'",
    clock_set_back: "later than this clock says: a clock is wrong",
    truncated: r"cut short: its \d+ bytes end in the middle",
    unreachable: r"evidence store .*Pulumi\.yaml: cannot be read",
    dropped_run: r"1 run\(s\) missing",
    hand_edited: "was written or edited by hand",
    criterion_deleted: "error_rate: deleted",
    not_a_number: "NaN is not a number that evidence may carry",
    infinite: "1e999 is infinite, which evidence may not be",
    three_requests: "run 1 answered 3 requests, 50 are needed",
}


def refusal(world: Any) -> str:
    """What the program says, or the promotion where there is none yet."""
    ask = world.check if world.stack("local-prod").promotion is not None else world.promote
    with pytest.raises(gate.GateRefused) as caught:
        ask()
    return str(caught.value)


def test_none_of_the_attacks_passes_and_each_has_words_of_its_own(worlds: Any) -> None:
    said = {}
    for attack in WORDS:
        world = next(worlds)
        attack(world)
        said[attack] = refusal(world)
    for attack, words in WORDS.items():
        answered = {other.__name__ for other, text in said.items() if re.search(words, text)}
        # Who replays evidence edits the stack's file by hand, and is told both.
        also = {replayed.__name__} if attack is hand_edited else set()
        assert answered == {attack.__name__} | also, f"{words}: {answered}\n{said[attack]}"
