"""`tollgate plan`: slots, nodes and dollars for a stack, or for a model, users and a promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

import stacks

_T = TypeVar("_T")

if TYPE_CHECKING:
    from planner import Calibration, Measured, Rendered, Search


def plan(
    stack: Annotated[str | None, typer.Argument(help="A stack of this project; or ask with --model.")] = None,
    model: Annotated[
        str | None, typer.Option(help="By any of its names (gemma3:4b, google/gemma-3-4b-it), or `any`.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=1, help="People who ask, wait for the reply and ask again.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="Requests per second, instead of users.")] = None,
    think: Annotated[float, typer.Option(min=0.0, help="Seconds a user thinks between reply and question.")] = 0.0,
    latency: Annotated[float | None, typer.Option(min=1e-6, help="End-to-end seconds, 95th percentile.")] = None,
    ttft: Annotated[float | None, typer.Option(min=1e-6, help="Seconds to the first token, p95.")] = None,
    itl: Annotated[float | None, typer.Option(min=1e-6, help="Seconds between tokens, p95.")] = None,
    budget: Annotated[float | None, typer.Option(min=0.01, help="USD per hour at most.")] = None,
    prompt: Annotated[float, typer.Option(min=1, help="Mean tokens of a prompt.")] = 128,
    output: Annotated[float, typer.Option(min=1, help="Mean tokens of a reply.")] = 128,
    output_cv: Annotated[float, typer.Option(min=0, help="Spread of replies: deviation over mean.")] = 0.0,
    prefix: Annotated[float, typer.Option("--shared-prefix", min=0, help="Prompt tokens that all have in common.")] = 0,
    prefix_hits: Annotated[float, typer.Option(min=0, max=1, help="Share that finds them in the prefix cache.")] = 1.0,
    context: Annotated[int, typer.Option(min=128, help="Tokens of context per slot.")] = 2048,
    gpu: Annotated[list[str] | None, typer.Option(help="Only this GPU (l4, a100-80gb …); may be repeated.")] = None,
    machine: Annotated[list[str] | None, typer.Option(help="Only this machine type; may be repeated.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Only ollama or vllm; may be repeated.")] = None,
    quantization: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    region: Annotated[str, typer.Option(help="Google Cloud region; the price book must have it.")] = "us-central1",
    max_nodes: Annotated[int, typer.Option(min=1, max=5000, help="Quota: nodes at most.")] = 5000,
    spot: Annotated[bool, typer.Option("--spot", help="Compare spot prices.")] = False,
    from_evidence: Annotated[
        bool,
        typer.Option("--from-evidence", help="Calibrate on the evidence of the stack's release, and say how it fits."),
    ] = False,
    results: Annotated[
        Path | None, typer.Option(exists=True, help="Calibrate on this benchmark result (JSON), or a folder of them.")
    ] = None,
    aiconfigurator: Annotated[
        bool, typer.Option("--aiconfigurator", help="Latency from AIConfigurator's kernels (must be on PATH).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="For a pull request or a document.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with the curves.")] = None,
) -> None:
    """Size a service: slots, nodes and dollars, with every assumption in sight. Exits 1 when a promise is broken."""
    if (stack is None) == (model is None):
        raise stacks.InputError(
            where="tollgate plan",
            got="neither a stack nor --model" if stack is None else "both a stack and --model",
            allowed="one of the two",
            fix="for example: tollgate plan local-dev, or tollgate plan --model gemma3:4b --users 50 --latency 5",
        )
    import planner

    fitted: Calibration | None = None
    sources = {"--from-evidence": from_evidence, "--results": results is not None, "--aiconfigurator": aiconfigurator}
    given = [name for name, value in sources.items() if value]
    if len(given) > 1:
        raise stacks.InputError(
            where=given[0], got=f"{given[1]} as well", allowed="one source of latency", fix="leave one of the two out"
        )
    if stack is not None:
        loaded = stacks.load_stack(stack)
        if from_evidence or results is not None:
            measured = planner.read_results(results) if results is not None else _evidence(loaded)
            fitted = planner.calibrate(measured, release=loaded.release)
        times = fitted.timing if fitted else planner.aiconfigurator_timing(loaded.release) if aiconfigurator else None
        report = planner.report_stack(loaded, times=times)
    else:
        if given:
            raise stacks.InputError(
                where=given[0], got="--model", allowed="a stack, whose release is known", fix="name a stack"
            )
        search = planner.Search(
            model=str(model),
            traffic=_checked(lambda: _traffic(users, rate, think, prompt, output, output_cv, prefix, prefix_hits)),
            objectives=_checked(lambda: _objectives(latency, ttft, itl)),
            context_tokens=context,
            engines=engine,
            quantizations=quantization,
            gpus=gpu,
            machines=machine,
            region=region,
            max_nodes=max_nodes,
            spot=spot,
            budget=budget,
        )
        if model == "any":
            _every_model(search, as_json=as_json, as_markdown=as_markdown, html=html)
            return
        report = planner.report_search(search)
    if html is not None:
        html.write_text(planner.html_page(report), encoding="utf-8")
        typer.echo(f"written: {html}", err=True)
    if as_json:
        import json

        data = planner.report_json(report)
        if fitted is not None:
            data["calibration"] = fitted.as_dict()
        print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    elif as_markdown:
        print(planner.report_markdown(planner.rendered(report)), end="")
        if fitted is not None:
            print("\n## Calibration\n\n" + "\n".join(f"- {line}" for line in fitted.lines()))
    else:
        _show(planner.rendered(report), report.plan.feasible, fitted.lines() if fitted else ())
    if not report.plan.feasible:
        raise typer.Exit(1)


def _evidence(stack: stacks.Stack) -> list[Measured]:
    """What the stack's store holds about its release, or one that differs in slots and names only."""
    import gate
    import planner

    root = stacks.project_root()
    entries = gate.open_store(stack.evidence, root, gate.load_keys(root)).entries()
    found = [
        planner.from_result(entry.facts["result"])
        for entry in entries
        if entry.kind == "measurement" and planner.comparable(entry.facts["release"], stack.release)
    ]
    measured = [one for one in found if one is not None]
    if not measured:
        raise stacks.InputError(
            where="--from-evidence",
            got=f"no valid measurement of {stack.release.name} in {stack.evidence}",
            allowed="a stack whose release has been measured",
            fix=f"measure it (pulumi up --stack {stack.name}), or name a result with --results",
        )
    return measured


def _traffic(
    users: int | None,
    rate: float | None,
    think: float,
    prompt: float,
    output: float,
    cv: float,
    prefix: float,
    hits: float,
) -> stacks.Traffic:
    if (users is None) == (rate is None):
        raise stacks.InputError(
            where="--users, --rate",
            got="neither" if users is None else "both",
            allowed="one of the two",
            fix="say how many users ask, or how many requests per second arrive",
        )
    if prefix >= prompt:
        raise stacks.InputError(
            where="--shared-prefix",
            got=f"{prefix:g}",
            allowed=f"below the {prompt:g} tokens of --prompt",
            fix="lower it, or give longer prompts: the prefix is a part of them",
        )
    return stacks.Traffic(
        arrival="closed" if users is not None else "poisson",
        users=users,
        requests_per_second=rate,
        think_seconds=think,
        prompt_tokens=stacks.Tokens(mean=prompt),
        output_tokens=stacks.Tokens(mean=output, cv=cv),
        prefix=stacks.Prefix(tokens=prefix, hit_rate=hits) if prefix else None,
    )


def _checked(build: Callable[[], _T]) -> _T:
    """What an option cannot be (no number, or beyond all bounds), said as every other wrong input is."""
    from pydantic import ValidationError

    try:
        return build()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "tollgate plan"
        raise stacks.InputError(
            where=where, got=repr(first["input"])[:80], allowed=first["msg"], fix="correct the option"
        ) from None


def _objectives(latency: float | None, ttft: float | None, itl: float | None) -> stacks.Objectives | None:
    given = {"e2e_p95_seconds": latency, "ttft_p95_seconds": ttft, "itl_p95_seconds": itl}
    promised = {name: value for name, value in given.items() if value is not None}
    return stacks.Objectives.model_validate(promised) if promised else None


def _every_model(search: Search, *, as_json: bool, as_markdown: bool, html: Path | None) -> None:
    """The cheapest choice of each model of the catalog. Exits 1 where none keeps the promise."""
    import dataclasses
    import json

    import planner

    if html is not None:
        raise stacks.InputError(
            where="--html",
            got="--model any",
            allowed="--json or --markdown",
            fix="name one model for a page with curves",
        )
    found = {}
    for name, entry in planner.catalog().models.items():
        asked = dataclasses.replace(search, model=name)
        # Models with less context, and the tiny one that tests serve, are no answer.
        choice = planner.cheapest(asked) if search.context_tokens <= entry.max_context else None
        if choice is not None and entry.family != "tollgate":
            found[name] = choice
    words = planner.rendered_models(search, found)
    kept = any(not choice.unmet for choice in found.values())
    if as_json:
        rows = [{"model": name, **planner.choice_json(choice)} for name, choice in found.items()]
        print(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False))
    elif as_markdown:
        print(planner.report_markdown(words), end="")
    else:
        _show(words, kept, ())
    if not kept:
        raise typer.Exit(1)


def _show(render: Rendered, good: bool, calibration: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(render.title, style="bold"))
    console.print(Text(render.verdict, style="green" if good else "red"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for row in render.facts:
        facts.add_row(*row)
    console.print(facts)
    for title, columns, rows in render.tables:
        console.print()
        console.print(Text(title, style="bold"))
        shown = _fitting(columns, rows, console.width)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for index in shown:
            # Words fold where there is no room; a number is never cut.
            folds = columns[index] in ("choice", "promise", "model", "limit")
            table.add_column(columns[index], no_wrap=not folds, overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[index], style="red" if row[index] == "broken" else "") for index in shown))
        console.print(table)
    for title, lines in (*render.lists, ("Calibration", calibration)):
        if lines:
            console.print()
            console.print(Text(title, style="bold"))
            for line in lines:
                console.print(Text(f"- {line}"), soft_wrap=True)


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The columns that a terminal has room for: the least needed go first."""
    widths = [max(len(cell) for cell in (name, *(row[index] for row in rows))) for index, name in enumerate(columns)]
    shown = list(range(len(columns)))
    for name in ("$/1M tokens", "$/month", "req/s", "spot"):
        if sum(widths[index] + 1 for index in shown) > width and name in columns:
            shown.remove(columns.index(name))
    return shown
