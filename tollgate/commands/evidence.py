"""`tollgate evidence`: what was measured, let in and approved, signed and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gate
import stacks
from bench.results import Result

from ._saying import Json, machine

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="List, show, verify and compare evidence; history of a stack; noise of an environment.",
)

_StackOption = Annotated[
    str | None, typer.Option("--stack", help="Whose store; default: the first stage of the pipeline.")
]
_Digest = Annotated[str, typer.Argument(help="Its digest or the start of it.")]


def _console() -> Console:
    """Not into 80 columns where nobody has a terminal: what is piped is searched by lines."""
    found = Console()
    return found if found.is_terminal else Console(width=240)


def _plain(*cells: str) -> list[Text]:
    """Cells as they are: what was signed is neither markup nor an escape of the terminal's."""
    return [Text("".join(char if char.isprintable() else "\ufffd" for char in cell)) for cell in cells]


def _entries(stack: str | None) -> list[gate.Entry]:
    root = stacks.project_root()
    name = stack or stacks.load_pipeline(root).stages[0].stack
    return gate.open_store(stacks.load_stack(name, root).evidence, root, gate.load_keys(root)).entries()


@app.command("list")
def list_(stack: _StackOption = None, as_json: Json = False) -> None:
    """Every statement, oldest first; each signature and the chain are verified on the way."""
    rows = [
        {
            "number": entry.number,
            "evidence": entry.digest,
            "kind": entry.kind,
            "stack": entry.stack,
            "release": entry.release_name,
            "digest": entry.release,
            "verdict": entry.facts["verdict"]["outcome"] if entry.kind == "measurement" else "",
            "signed_at": entry.facts["signed_at"],
        }
        for entry in _entries(stack)
    ]
    if as_json:
        machine(rows)
        return
    table = Table("#", "evidence", "kind", "stack", "release", "digest", "verdict", "signed", box=None)
    for row in rows:
        shown = [str(row["number"]), row["evidence"][7:19], row["kind"], row["stack"], row["release"]]
        table.add_row(*_plain(*shown, row["digest"][7:19], row["verdict"], row["signed_at"]))
    _console().print(table if rows else "no evidence yet: pulumi up on a stack with a benchmark makes it")


@app.command()
def show(evidence: _Digest, stack: _StackOption = None) -> None:
    """One statement, whole, as it was signed."""
    machine(_find(evidence, stack).statement)


@app.command()
def verify(stack: _StackOption = None, as_json: Json = False) -> None:
    """Check every signature and the chain; exits 3 with the first thing that is wrong."""
    entries = _entries(stack)
    if as_json:
        machine({"statements": len(entries), "newest": entries[-1].digest if entries else None})
        return
    last = f", newest {entries[-1].digest[7:19]}" if entries else ""
    typer.echo(f"{len(entries)} statement(s): every signature holds and the chain is whole{last}")


@app.command()
def diff(one: _Digest, two: _Digest, stack: _StackOption = None, as_json: Json = False) -> None:
    """What two measurements differ in: release, traffic, environment, tools, and each metric's mean over runs."""
    first, second = (_measurement(_find(name, stack)) for name in (one, two))
    rows = differences(first, second)
    if as_json:
        machine([{"what": what, "one": a, "two": b} for what, a, b, _ in rows])
        return
    table = Table("", one[:19], two[:19], "change", box=None)
    for what, a, b, change in rows:
        table.add_row(*_plain(what, _shown(a), _shown(b), change))
    _console().print(table if rows else "no difference")


@app.command()
def history(stack: Annotated[str, typer.Argument(help="Whose.")], as_json: Json = False) -> None:
    """What ran when on a stack, on what evidence, approved by whom; from the signed statements alone."""
    events = gate.history(stack, stacks.project_root())
    if as_json:
        machine([{**vars(event), "at": event.at.isoformat()} for event in events])
        return
    table = Table("at (UTC)", "", "release", "digest", "what", "key", box=None)
    for event in events:
        when = f"{event.at.astimezone(UTC):%Y-%m-%d %H:%M}"
        table.add_row(*_plain(when, event.kind, event.release_name, event.release[7:19], event.what, event.by))
    _console().print(table if events else f"nothing was signed about {stack} yet")


@app.command()
def calibrate(
    stack: Annotated[str, typer.Argument(help="Where the sessions were measured.")],
    results: Annotated[
        list[Path] | None, typer.Argument(help="Results of `tollgate bench --output`; default: all in the store.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure an environment's noise from several measurements of one release (A/A), and sign it."""
    root = stacks.project_root()
    sessions = [_result(path) for path in results or []]
    loaded = stacks.load_stack(stack, root)
    found, entry = gate.record_calibration(loaded, sessions, root=root, now=datetime.now(UTC))
    runs = loaded.benchmark.runs if loaded.benchmark is not None else 5
    if as_json:
        machine({"evidence": entry.digest, "runs": runs, "noise": found.plain()})
        return
    table = Table("metric", "within", "between", f"floor at {runs} runs", "naive false alarms", box=None)
    for metric, noise in found.noise.items():
        floor = f"{noise.floor(runs, 0.95):.2%}"
        table.add_row(metric, f"{noise.within:.2%}", f"{noise.between:.2%}", floor, f"{noise.naive_alarms:.0%}")
    _console().print(table)
    typer.echo(
        "within: of runs in one session; between: of sessions beyond that; floor: the least max_regression that an equal\n"
        "release passes four times in five; naive false alarms: sessions that differ when only runs are looked at\n"
        f"signed as {entry.digest[7:19]}"
    )


def _result(path: Path) -> Result:
    try:
        return Result.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise stacks.InputError(
            where=str(path), got=what, allowed="a result of tollgate bench", fix="name its file"
        ) from None


def _find(evidence: str, stack: str | None) -> gate.Entry:
    wanted = evidence.removeprefix("sha256:")
    entries = _entries(stack)
    found = [entry for entry in entries if wanted and entry.digest.removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1:
        raise stacks.InputError(
            where="EVIDENCE",
            got=evidence,
            allowed=", ".join(entry.digest[7:19] for entry in entries[-8:]) or "none: the store is empty",
            fix="give the start of exactly one of them",
        )
    return found[0]


def _measurement(entry: gate.Entry) -> gate.Entry:
    if entry.kind != "measurement":
        raise stacks.InputError(
            where="EVIDENCE", got=f"{entry.digest[7:19]}, {entry.kind}", allowed="two measurements", fix="see the list"
        )
    return entry


def differences(one: gate.Entry, two: gate.Entry) -> list[tuple[str, Any, Any, str]]:
    """(what, in one, in two, change) of two measurements; `change` is in words, and empty for what is no metric."""
    rows: list[tuple[str, Any, Any, str]] = []
    plain = [_flat({"digest": entry.release, **_facts(entry)}) for entry in (one, two)]
    for key in sorted({*plain[0], *plain[1]}):
        a, b = plain[0].get(key), plain[1].get(key)
        if a != b:
            rows.append((key, a, b, ""))
    means = [_means(gate.result_of(entry)) for entry in (one, two)]
    for metric in sorted({*means[0], *means[1]}):
        a, b = means[0].get(metric), means[1].get(metric)
        if a != b:
            rows.append((metric, a, b, f"{b / a - 1:+.1%}" if a and b is not None else ""))
    return rows


def _facts(entry: gate.Entry) -> dict[str, Any]:
    result = entry.facts["result"]
    picked = {key: entry.facts[key] for key in ("stack", "release", "objectives", "source", "tools", "price_book")}
    return {
        **picked,
        **{key: result[key] for key in ("traffic", "environment", "server", "replicas")},
        "runs": len(result["runs"]),
        "verdict": entry.facts["verdict"]["outcome"],
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return found


def _means(result: Result) -> dict[str, float]:
    names = {name for run in result.runs for name in run.metrics}
    values = {name: [run.metrics[name] for run in result.runs if name in run.metrics] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
