"""`tollgate preview`: cost and node changes of stacks, against a base commit offline, or against what is deployed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

import stacks

_MOST_BYTES = 50_000_000


def preview(
    names: Annotated[list[str] | None, typer.Argument(metavar="[STACK]...", help="Default: every stack.")] = None,
    base: Annotated[str | None, typer.Option(help="Commit to compare with; evaluated offline.")] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Evaluate only: no state, credentials or passphrase. Without --base all is new."
        ),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The pull request comment.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines; see docs/preview/report.schema.json.")] = False,
    html: Annotated[bool, typer.Option("--html", help="One self-contained page.")] = False,
    infracost: Annotated[bool, typer.Option("--infracost", help="In the shape of Infracost's JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write there instead of to standard output.")] = None,
    read: Annotated[
        Path | None, typer.Option("--from", exists=True, dir_okay=False, help="Show what an earlier --json has found.")
    ] = None,
    comment: Annotated[
        str | None, typer.Option(metavar="github|gitlab", help="Put it on the pull or merge request of this CI job.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Another price book (CSV).")] = None,
) -> None:
    """Cost and node changes. Exits 0; 1 when a program fails, 2 on wrong input, 4 over a limit of stacks/preview.yaml."""
    import preview as room

    forms = {"--markdown": markdown, "--json": as_json, "--html": html, "--infracost": infracost}
    chosen = [name for name, value in forms.items() if value]
    if len(chosen) > 1:
        raise stacks.InputError(
            where=chosen[0], got=f"{chosen[1]} as well", allowed="one form", fix="use --json, and --from for the others"
        )
    if comment not in (None, "github", "gitlab"):
        raise stacks.InputError(where="--comment", got=str(comment), allowed="github, gitlab", fix="name one of these")
    try:
        report = (
            room.from_json(_text(read)) if read is not None else collect(_root(), names or [], base, offline, prices)
        )
    except stacks.TollgateError as error:
        if read is not None or not (chosen or comment):
            raise
        # Where it is read by people or machines it must say so there, too.
        source: Any = "offline" if offline or base is not None else "state"
        report = room.failure(error, source=source, base=base)
        print(f"error: {error}", file=sys.stderr)
    if chosen or out is not None:
        _write(_rendered(report, chosen[0] if chosen else "--markdown"), out)
    elif comment is None:
        from rich.console import Console

        show(report, Console())
    if comment is not None:
        kind: Any = comment
        outcome = room.comment(kind, room.markdown(report), wanted=report.worth_a_comment)
        words = {"nothing": "nothing to say, no comment", "nowhere": "may not comment, and there is no job summary"}
        print(words.get(outcome.done, f"comment: {outcome.done} {outcome.where}".strip()), file=sys.stderr)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def collect(root: Path, names: Sequence[str], base: str | None, offline: bool = True, book: Path | None = None) -> Any:
    """The report of these stacks (none: all): from `base` (None: from nothing) to the files as they are, or from the state."""
    import preview as room

    limits = room.load_limits(root)
    older: list[room.Limits] = []

    def days(folder: Path) -> Mapping[str, Sequence[float]]:
        if folder == root:
            return limits.days
        try:
            older.append(room.load_limits(folder))
        except stacks.InputError:
            return {}
        return older[0].days

    known = stacks.stack_names(root)
    for name in names:
        if base is None:
            stacks.stack_path(name, root)
    if offline or base is not None:
        changes = _offline(root, names, base, days, book)
    else:
        changes = _stated(root, list(names) or known, limits.days, book)
    return room.report(
        [_with_evidence(change, root, offline=offline or base is not None) for change in changes],
        source="offline" if offline or base is not None else "state",
        base=base,
        book=room.prices(book).book,
        today=datetime.now(UTC).date(),
        limits=limits,
        base_limits=older[0] if older and older[0] != limits else None,
    )


def _offline(root: Path, names: Sequence[str], base: str | None, days: Any, book: Path | None) -> list[Any]:
    import preview as room

    # Reading the prices takes as long as starting the children: both at once.
    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = pool.submit(room.prices, book)
        after, before, wanted = room.evaluate_both(root, names, base, days)
        prices = reading.result()
    for name in names:
        if name not in after and before.get(name) is None:
            stacks.stack_path(name, root)
    return [_change(name, before.get(name), after.get(name), prices) for name in wanted]


def _change(name: str, before: Any, after: Any, prices: Any) -> Any:
    import preview as room

    if after is not None and after.error is not None:
        return room.Change(stack=name, error=after.error, input_error=after.input_error)
    usable = before is not None and before.error is None
    old, new = (before.resources if usable else ()), (after.resources if after else ())

    def shaped(found: Any) -> Any:
        return room.shape(name, found.resources, prices, plan=found.plan, release=found.release)

    try:
        return room.Change(
            stack=name,
            before=shaped(before) if usable else None,
            after=shaped(after) if after is not None else None,
            events=room.events(old, new),
            counts=room.counts(old, new),
            base_error=before.error if before is not None else None,
        )
    except stacks.TollgateError as error:
        # One stack's resources; the others are still to be seen.
        return room.Change(stack=name, error=str(error))


def _stated(root: Path, names: Sequence[str], days: Any, book: Path | None) -> list[Any]:
    """By the real engine; the plan, which no state knows, by evaluating what would be."""
    import preview as room

    prices = room.prices(book)
    # Two previews at a time: each waits for its engine, its program and its cluster in turn.
    with ThreadPoolExecutor(max_workers=1) as planner, ThreadPoolExecutor(max_workers=2) as pool:
        planning = planner.submit(_plans, root, names, days)
        found = list(pool.map(lambda name: room.from_state(root, name), names))
        plans = planning.result()
    changes = []
    for one in found:
        if one.error is not None:
            changes.append(room.Change(stack=one.stack, error=one.error))
            continue
        plan = plans.get(one.stack)
        before = room.shape(one.stack, one.before, prices) if one.before else None
        changes.append(
            room.Change(
                stack=one.stack,
                before=before,
                after=room.shape(one.stack, one.after, prices, plan=plan.plan if plan else None),
                events=room.stated(one.steps),
                counts=room.stated_counts(one.steps),
            )
        )
    return changes


def _plans(root: Path, names: Sequence[str], days: Any) -> Mapping[str, Any]:
    import preview as room

    return room.evaluate(root, names, days)


def _with_evidence(change: Any, root: Path, *, offline: bool) -> Any:
    """Whether the gate has evidence for a release that is new to a gated stack."""
    after = change.after
    if after is None or (change.before is not None and change.before.digest == after.digest):
        return change
    if not after.gate.get("gated"):
        return change
    return change.model_copy(update={"evidence": _evidence(str(after.gate.get("after")), after.digest, root, offline)})


def _evidence(source: str, digest: str, root: Path, offline: bool) -> Any:
    import preview as room

    short = digest.removeprefix("sha256:")[:12]
    try:
        stack = stacks.load_stack(source, root)
        if offline and not stack.evidence.startswith("file:"):
            words = f"not looked at: the store of {source} ({stack.evidence}) needs credentials"
            return room.Evidence(state="not looked at", words=words)
        import gate

        entry = gate.newest(stack, root, digest)
    except stacks.TollgateError as error:
        return room.Evidence(state="not looked at", words=f"not looked at: {str(error).splitlines()[0]}")
    if entry is None:
        words = f"none of release {short} on {source}: the gate will refuse it until it is measured there"
        return room.Evidence(state="missing", words=words)
    verdict = entry.facts["verdict"]["outcome"]
    words = f"release {short} was measured on {source}: {verdict}, {entry.signed_at:%Y-%m-%d %H:%M} UTC ({entry.digest[7:19]})"
    return room.Evidence(state="found", words=words)


def show(report: Any, console: Any) -> None:
    """The report on a terminal."""
    from rich.table import Table
    from rich.text import Text

    import preview as room

    red, yellow = room.alerts(report)
    for stack in report.stacks:
        quiet = stack.status == "unchanged"
        console.print(Text(stack.headline, style="dim" if quiet else "red" if stack.error else "bold"), soft_wrap=True)
        if stack.error is not None:
            console.print(Text(stack.error, style="dim"), soft_wrap=True)
    if report.stacks:
        table = Table(
            "stack", "", "nodes", "$/h", "$/month", "$/1M tokens", box=None, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for stack in report.stacks:
            if stack.error is None:
                for cells in _cells(stack):
                    table.add_row(*cells)
        console.print(table)
    for word, style, messages in (("danger", "red", red), ("warning", "yellow", yellow)):
        for message in messages:
            console.print(Text(f"{word}: {message}", style=style), soft_wrap=True)
    for stack in report.stacks:
        if stack.evidence is not None:
            console.print(Text(f"{stack.stack}: evidence: {stack.evidence.words}"), soft_wrap=True)
    # What stays as it is and has no price is said of stacks only that anybody looks at.
    looked_at = [stack for stack in report.stacks if stack.status != "unchanged"] or report.stacks
    for words in room.unpriced_words(looked_at):
        console.print(Text(f"unpriced, in no sum above: {words}", style="yellow"), soft_wrap=True)
    console.print(Text(room.prices_words(report.prices), style="dim"), soft_wrap=True)


def _cells(stack: Any) -> list[tuple[str, ...]]:
    import preview as room

    rows = []
    for level, word in zip(room.LEVELS, ("at least", "expected", "at most"), strict=True):
        amounts = getattr(stack.totals, level)

        def both(before: str, after: str) -> str:
            return after if stack.status == "new" or before == after else f"{before} → {after}"

        dollars = [
            both(
                _dollars(getattr(amounts, f"usd_per_{unit}_before"), partial=stack.partial_before),
                _dollars(getattr(amounts, f"usd_per_{unit}_after"), partial=stack.partial_after),
            )
            for unit in ("hour", "month")
        ]
        nodes = both(f"{amounts.nodes_before.normalize():f}", f"{amounts.nodes_after.normalize():f}")
        tokens = (stack.usd_per_million_tokens_before, stack.usd_per_million_tokens_after)
        said = both(*("–" if one is None else room.money(one) for one in tokens)) if level == "expected" else ""
        rows.append((stack.stack if level == "min" else "", word, nodes, *dollars, said))
    return rows


def _dollars(value: Decimal, *, partial: bool) -> str:
    """To the cent; from $1,000 on to the dollar, so that the table fits a terminal of 80 columns."""
    import preview as room

    if value < 1000:
        return room.dollars(value, partial=partial)
    return room.dollars(value.quantize(Decimal(1), rounding=ROUND_HALF_UP), partial=partial).replace(".00", "")


def _rendered(report: Any, form: str) -> str:
    import preview as room

    if form == "--json":
        return room.as_json(report)
    if form == "--html":
        return room.page(report)
    if form == "--infracost":
        return json.dumps(room.infracost(report, datetime.now(UTC)), indent=2) + "\n"
    return room.markdown(report)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise stacks.InputError(
            where="--out", got=str(error), allowed="a file that can be written", fix="name another"
        ) from None


def _text(path: Path) -> str:
    try:
        # It comes from a job that ran anybody's code.
        if path.stat().st_size > _MOST_BYTES:
            raise OSError(f"{path.stat().st_size} bytes, more than {_MOST_BYTES}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise stacks.InputError(where="--from", got=str(error), allowed="a readable file", fix="name another") from None


def _root() -> Path:
    return stacks.project_root()
