"""The toll gate inside the program: a gated stack proves its release before any resource is made.

Deliberately not here: judging. `gate.check` does that; this component turns a refusal into a stopped program and an
admission into something that every preview and every state shows. The edge of the pipeline is among its inputs, so that
taking the gate away, or asking less of the evidence, is a change that a preview names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pulumi

import gate
import stacks

from ._base import Component
from .preflight import refuse_tags


@dataclass(frozen=True, kw_only=True)
class PromotionCheckArgs:
    """`enforce=False` is for evaluating a program without deploying it (cost previews); it is recorded as such.

    `candidate`: the release is to run beside the promoted one, and is judged as if it were to be promoted.
    """

    stack: stacks.Stack
    release_digest: str
    root: Path
    enforce: bool = True
    candidate: bool = False


class PromotionCheck(Component):
    """Raises `gate.GateRefused` from its constructor, in preview and up, unless the stack's gate admits the release.

    `gated`: whether the pipeline asks for evidence here; `evidence`: on which it was let in. What was let in by an override
    is said as a warning each time.
    """

    gated: bool
    evidence: str | None

    def __init__(self, name: str, args: PromotionCheckArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        stage = stacks.load_pipeline(args.root).stage(args.stack.name)
        after = stage.after if stage is not None else None
        if stage is not None and stage.digests_only:
            refuse_tags(args.stack, f"stacks/pipeline.yaml asks for digests in {args.stack.name}")
        self.gated, self.evidence, approved = after is not None, None, []
        if args.enforce:
            admission = gate.check(
                args.stack,
                release_digest=args.release_digest,
                root=args.root,
                now=datetime.now(UTC),
                candidate=args.candidate,
            )
            self.evidence = admission.evidence
            approved = admission.verdict.approved if admission.verdict is not None else []
        facts = {
            "release": args.stack.release.name,
            "digest": args.release_digest,
            "gated": self.gated,
            "after": after,
            "criteria": stage.criteria.model_dump(mode="json") if stage is not None and self.gated else None,
            "evidence": self.evidence,
            "approved": approved,
            "enforced": args.enforce,
            "digestsOnly": (stage is not None and stage.digests_only) or None,
        }
        super().__init__(name, facts, opts)
        for line in approved:
            pulumi.log.warn(line, self)
        self.register_outputs({"gated": self.gated, "evidence": self.evidence})
