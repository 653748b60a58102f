"""This project's files: stacks that can work, keys, evidence, prices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import gate
import planner
import preview
import stacks
from components import refuse

from ._finding import Finding

_KEY = Path(".tollgate") / "keys" / "evidence.key"


def project(root: Path, wanted: Sequence[stacks.Stack], broken: Sequence[Finding], today: date) -> Iterator[Finding]:
    """`wanted`: the stacks that were asked about and can be read; `broken`: what is wrong with the others."""
    yield from broken
    try:
        pipeline = stacks.load_pipeline(root)
    except stacks.TollgateError as error:
        yield _failed("pipeline", error)
        return
    for stack in wanted:
        yield _stack(stack)
    gated = {stage.stack for stage in pipeline.stages if stage.after is not None}
    yield from _keys(root, any(stack.name in gated for stack in wanted))
    for location in dict.fromkeys(stack.evidence for stack in wanted):
        yield _store(location, root)
    yield from _prices(root, wanted, today)


def unreadable(name: str, error: stacks.TollgateError) -> Finding:
    """A stack whose files cannot be read."""
    return _failed(f"stack {name}", error)


def _failed(about: str, error: stacks.TollgateError) -> Finding:
    if isinstance(error, stacks.InputError):
        said = f"{error.where}: got {error.got}, allowed: {error.allowed}"
        return Finding(area="project", about=about, level="bad", said=said, fix=error.fix)
    first, _, rest = str(error).partition("\n")
    fix = rest.strip().removeprefix("fix:").strip().splitlines()
    return Finding(area="project", about=about, level="bad", said=first, fix=fix[0] if fix else "")


def _stack(stack: stacks.Stack) -> Finding:
    try:
        refuse(stack)
        plan = planner.plan(stack)
    except stacks.TollgateError as error:
        return _failed(f"stack {stack.name}", error)
    if plan.unmet:
        names = ", ".join(stacks.OBJECTIVES[name][2] for name in plan.unmet)
        return Finding(
            area="project", about=f"stack {stack.name}", level="warning",
            said=f"by the plan it does not keep: {names} ({plan.binds})", fix=f"tollgate plan {stack.name} says what would",
        )  # fmt: skip
    said = (
        f"{plan.slots} slots, {plan.nodes_min} to {plan.nodes_max} {plan.machine_type}, every promise kept by the plan"
    )
    return Finding(area="project", about=f"stack {stack.name}", level="good", said=said)


def _keys(root: Path, gated: bool) -> Iterator[Finding]:
    try:
        keys = gate.load_keys(root)
    except stacks.TollgateError as error:
        yield _failed("evidence keys", error)
        return
    committed = sorted(path.stem for path in (root / "stacks" / "keys").glob("*.pub"))
    if committed:
        yield Finding(area="project", about="trusted keys", level="good", said=", ".join(committed))
    elif gated:
        yield Finding(
            area="project", about="trusted keys", level="warning",
            said="none is committed: whoever has a checkout signs what that checkout believes",
            fix="commit the public key of your CI as stacks/keys/ci.pub",
        )  # fmt: skip
    if keys.signer is None:
        yield Finding(
            area="project", about="signing key", level="warning" if committed else "good",
            said="none here" + (": this machine may only verify" if committed else "; made at the first measurement"),
            fix=f"set ${gate.KEY_VARIABLE} where evidence is to be made" if committed else "",
        )  # fmt: skip
    private = root / _KEY
    if private.is_file() and private.stat().st_mode & 0o077:
        yield Finding(
            area="project",
            about="signing key",
            level="bad",
            said=f"{_KEY} can be read by others",
            fix=f"chmod 600 {_KEY}",
        )


def _store(location: str, root: Path) -> Finding:
    about = f"evidence {location}"
    try:
        entries = gate.open_store(location, root, gate.load_keys(root)).entries()
    except stacks.TollgateError as error:
        return _failed(about, error)
    return Finding(
        area="project",
        about=about,
        level="good",
        said=f"{len(entries)} statements, every signature holds, the chain is whole",
    )


def _prices(root: Path, wanted: Sequence[stacks.Stack], today: date) -> Iterator[Finding]:
    try:
        old = preview.load_limits(root).old_prices_days
        book = planner.price_book()
    except stacks.TollgateError as error:
        yield _failed("prices", error)
        return
    ages: dict[str, int] = {}
    for stack in wanted:
        for region in stack.fleet.regions:
            what = f"{stack.fleet.machine_type} in {region}"
            price = book.prices.get((region, stack.fleet.machine_type))
            if price is None or (stack.fleet.spot and price.spot is None):
                offer = "spot price" if price is not None else "price"
                yield Finding(
                    area="project", about="prices", level="bad", said=f"no {offer} of {what}, which {stack.name} asks for",
                    fix=f"tollgate prices refresh --region {region}",
                )  # fmt: skip
            else:
                ages[what] = price.age_days(today)
    if not ages:
        return
    oldest = max(ages, key=lambda what: ages[what])
    said = f"{book.source}: the oldest in use is {ages[oldest]} days old ({oldest})"
    if ages[oldest] > old:
        region = oldest.rpartition(" in ")[2]
        yield Finding(
            area="project", about="prices", level="warning", said=said, fix=f"tollgate prices refresh --region {region}"
        )
    else:
        yield Finding(area="project", about="prices", level="good", said=said)
