"""The toll gate inside the program: a gated stack proves its release before any resource is made.

Deliberately not here: judging. `gate.check` does that; this component turns a refusal into a stopped program and an
admission into something that every preview and every state shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pulumi

import gate
import stacks

from ._base import Component


@dataclass(frozen=True, kw_only=True)
class PromotionCheckArgs:
    """`enforce=False` is for evaluating a program without deploying it (cost previews); it is recorded as such."""

    stack: stacks.Stack
    release_digest: str
    root: Path
    enforce: bool = True


class PromotionCheck(Component):
    """Raises `gate.GateRefused` from its constructor, in preview and up, unless the stack's gate admits the release."""

    gated: bool
    evidence: str | None

    def __init__(self, name: str, args: PromotionCheckArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        self.gated, self.evidence = False, None
        if args.enforce:
            admission = gate.check(
                args.stack, release_digest=args.release_digest, root=args.root, now=datetime.now(UTC)
            )
            self.gated, self.evidence = admission.gated, admission.evidence
        facts = {
            "release": args.stack.release.name,
            "digest": args.release_digest,
            "gated": self.gated,
            "evidence": self.evidence,
            "enforced": args.enforce,
        }
        super().__init__(name, facts, opts)
        self.register_outputs({"gated": self.gated, "evidence": self.evidence})
