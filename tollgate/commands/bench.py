"""`tollgate bench`: measure a stack's service, or any URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import stacks
from bench import load as generator
from bench import report
from bench.job import line, milliseconds
from bench.results import Result, Run

_RATES = (
    ("requests/s", "requests_per_second"),
    ("tokens/s out", "output_tokens_per_second"),
    ("in flight, mean", "concurrency_mean"),
    ("goodput", "goodput"),
    ("$/M tokens", "cost_per_million_tokens_usd"),
)
_ENGINES = ("ollama", "vllm", "openai")


def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="[STACK]", help="Take engine, model and traffic from it.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of the service; a stack's is not known outside it.")] = None,
    model: Annotated[str | None, typer.Option(help="The name by which the engine knows it.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="ollama, vllm or openai; default: the stack's, else openai.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="chat or generate.")] = "chat",
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Read replies token by token.")] = True,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop of so many users.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.0, help="Open loop: Poisson arrivals per second.")] = None,
    constant: Annotated[bool, typer.Option("--constant", help="With --rate: evenly spaced instead.")] = False,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds of each run, after warm-up.")] = None,
    runs: Annotated[int | None, typer.Option(min=1, max=100, help="Samples.")] = None,
    prompt_tokens: Annotated[float, typer.Option(min=1, help="Mean length of prompts.")] = 128,
    max_tokens: Annotated[float, typer.Option(min=1, help="Mean length of answers.")] = 128,
    reconnect: Annotated[bool, typer.Option("--reconnect", help="A new connection for every request.")] = False,
    api_key: Annotated[str, typer.Option(envvar="TOLLGATE_API_KEY", help="Sent as a bearer token.")] = "",
    header: Annotated[list[str] | None, typer.Option(help="NAME: VALUE, added to every request.")] = None,
    ca_file: Annotated[str, typer.Option(help="PEM file of the authority to trust.")] = "",
    seed: Annotated[int, typer.Option(help="Of prompts, lengths and arrivals.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the load.")] = 1,
    burstiness: Annotated[
        float | None, typer.Option(min=0.0, help="With --rate: CV of the gaps; 1 is Poisson.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay this JSONL or CSV of times and lengths.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="With --trace: so many times as fast.")] = 1.0,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts or messages, or ShareGPT.")] = None,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with.")] = 0,
    find_limit: Annotated[
        bool, typer.Option("--find-limit", help="Find the highest rate that holds, by bisection.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole result there.")] = None,
    raw_file: Annotated[Path | None, typer.Option("--raw", help="Write a line of JSON for every request.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write the report as one page.")] = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Earlier --json files to set beside this one.")] = None,
) -> None:
    """Measure a stack's service (STACK --url …), or any URL (--url … --model …)."""
    stack = stacks.load_stack(name) if name is not None else None
    if url is None:
        raise stacks.InputError(
            where="--url", got="nothing", allowed="http(s)://host[:port]", fix="give the address of the service"
        )
    chosen = engine or (stack.release.engine if stack else "openai")
    if chosen not in _ENGINES:
        raise stacks.InputError(where="--engine", got=chosen, allowed=", ".join(_ENGINES), fix="name one of these")
    if endpoint not in ("chat", "generate"):
        raise stacks.InputError(where="--endpoint", got=endpoint, allowed="chat, generate", fix="name one of these")
    asked = model or (stack.release.source if stack else None)
    if asked is None:
        raise stacks.InputError(where="--model", got="nothing", allowed="a model of the service", fix="name it")
    target = generator.Target(
        url=url,
        engine=cast(Any, chosen),
        model=asked,
        endpoint=cast(Any, endpoint),
        stream=stream,
        api_key=api_key,
        headers=tuple(_header(text) for text in header or []),
        ca_file=ca_file,
    )
    settings = generator.Settings(
        runs=runs or (stack.benchmark.runs if stack and stack.benchmark else 1),
        seconds=duration or (stack.benchmark.seconds if stack and stack.benchmark else 30.0),
        seed=seed,
        reconnect=reconnect,
        workers=workers,
        raw_file=raw_file,
    )
    earlier = [_earlier(path) for path in compare or []]
    if raw_file is not None:
        raw_file.write_bytes(b"")
    traffic = _traffic(stack, concurrency, rate, constant, prompt_tokens, max_tokens)
    release = _release(stack) or stacks.digest({"url": url, "engine": chosen, "model": asked})
    console = Console()
    load, source = _special(traffic, seed, endpoint, burstiness, trace, speed, prompts, shared_prefix)
    if find_limit:
        _limit(console, target, traffic, settings, release, stack, rate)
        return
    with _view(console, settings) as (progress, say):
        result = generator.run(
            target,
            traffic,
            settings,
            release=release,
            stack=stack.name if stack else "none",
            costs=generator.Costs(objectives=stack.objectives if stack else None),
            progress=progress,
            say=say,
            load=load,
            source=source,
        )
    if json_file is not None:
        json_file.write_text(result.model_dump_json(indent=1) + "\n")
    if html_file is not None:
        html_file.write_text(report.html([*earlier, result]))
    summarize(result, console)
    for before in earlier:
        _changes(before, result, console)
    if json_file is not None:
        console.print(f"result: {json_file}", soft_wrap=True)
    if html_file is not None:
        console.print(f"report: {html_file}", soft_wrap=True)
    if not result.runs or not any(run.ok for run in result.runs):
        raise typer.Exit(1)


def _header(text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    if not colon or not key.strip():
        raise stacks.InputError(where="--header", got=text, allowed="NAME: VALUE", fix="put a colon after the name")
    return key.strip(), value.strip()


def _traffic(
    stack: stacks.Stack | None, users: int | None, rate: float | None, constant: bool, prompt: float, answer: float
) -> stacks.Traffic:
    """The stack's own traffic unless an option says otherwise."""
    if users is not None and rate is not None:
        raise stacks.InputError(
            where="--concurrency and --rate", got="both", allowed="one of them", fix="remove one: closed or open loop"
        )
    if stack is not None and users is None and rate is None:
        return stack.traffic
    prompts = stack.traffic.prompt_tokens if stack else stacks.Tokens(mean=prompt)
    answers = stack.traffic.output_tokens if stack else stacks.Tokens(mean=answer)
    if rate is None:
        return stacks.Traffic(arrival="closed", users=users or 1, prompt_tokens=prompts, output_tokens=answers)
    arrival: Literal["constant", "poisson"] = "constant" if constant else "poisson"
    return stacks.Traffic(arrival=arrival, requests_per_second=rate, prompt_tokens=prompts, output_tokens=answers)


def _special(
    traffic: stacks.Traffic,
    seed: int,
    endpoint: str,
    burstiness: float | None,
    trace: Path | None,
    speed: float,
    prompts: Path | None,
    shared_prefix: int,
) -> tuple[Callable[[int], generator.Load] | None, Callable[[int], generator.Source] | None]:
    """Arrivals and prompts that `stacks.Traffic` has no words for."""
    if trace is not None:
        replayed = generator.read_trace(trace)
        return lambda _: replayed.load(speed=speed), lambda number: replayed.source(seed + number)
    load: Callable[[int], generator.Load] | None = None
    source: Callable[[int], generator.Source] | None = None
    if burstiness is not None:
        mean = traffic.requests_per_second
        if mean is None:
            raise stacks.InputError(where="--burstiness", got="no rate", allowed="an open loop", fix="add --rate")
        load = lambda number: generator.Open.steady(mean, cv=burstiness, seed=seed + number)  # noqa: E731
    if prompts is not None:
        if endpoint != "chat":
            raise stacks.InputError(
                where="--prompts", got="--endpoint generate", allowed="chat", fix="use --endpoint chat"
            )
        said = generator.read_dialogues(prompts)
        answers = round(traffic.output_tokens.mean)
        source = lambda _: generator.Conversations(said, [answers])  # noqa: E731
    elif shared_prefix:
        source = lambda n: generator.SharedPrefix(traffic, seed + n, prefix_tokens=shared_prefix)  # noqa: E731
    return load, source


def _earlier(path: Path) -> Result:
    try:
        return Result.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise stacks.InputError(
            where=f"--compare {path}", got=str(error).splitlines()[0], allowed="a file of --json", fix="name another"
        ) from error


def _limit(
    console: Console,
    target: generator.Target,
    traffic: stacks.Traffic,
    settings: generator.Settings,
    release: str,
    stack: stacks.Stack | None,
    rate: float | None,
) -> None:
    """Bisect to the highest rate that keeps the stack's promises, or at which the service just keeps up."""
    objectives = stack.objectives if stack else None

    def measure(tried: float) -> Run:
        asked = stacks.Traffic(
            arrival="poisson",
            requests_per_second=tried,
            prompt_tokens=traffic.prompt_tokens,
            output_tokens=traffic.output_tokens,
        )
        once = replace(settings, runs=1)
        costs = generator.Costs(objectives=objectives)
        return generator.run(target, asked, once, release=release, stack="none", costs=costs).runs[0]

    def say(step: generator.Step) -> None:
        console.print(
            Text(f"{step.rate:9.2f} requests/s: {step.because or 'holds'}", style="" if step.because else "green")
        )

    found = generator.sweep(measure, start=rate or 1.0, objectives=objectives, say=say)
    console.print(Text(f"highest rate that holds: {found.highest:.2f} requests/s", style="bold"))


def _changes(before: Result, after: Result, console: Console) -> None:
    """Medians of two results side by side."""
    table = Table(
        box=None, header_style="bold", title=f"against {before.stack}, measured {before.runs[0].started:%F %T}"
    )
    for column in ("", "before", "now", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for change in report.comparison(before, after):
        style = {True: "green", False: "red", None: ""}[change.better]
        ratio = Text("-" if change.ratio is None else f"× {change.ratio:.3f}", style=style)
        table.add_row(change.words, change.before, change.after, ratio)
    console.print(table)


def _release(stack: stacks.Stack | None) -> str | None:
    if stack is None:
        return None
    import values

    return values.release_digest(stack.release)


@contextmanager
def _view(
    console: Console, settings: generator.Settings
) -> Iterator[tuple[Callable[[generator.Progress], None], Callable[[str], None]]]:
    """A live view on a terminal; elsewhere a line every five seconds."""
    if console.is_terminal:
        with Live(Text("connecting…"), console=console, refresh_per_second=8, transient=True) as live:
            began = time.monotonic()
            yield lambda now: live.update(panel(now, settings, time.monotonic() - began)), live.console.print
        return
    last = 0.0

    def progress(now: generator.Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= 5.0:
            last = time.monotonic()
            print(line(now), flush=True)

    yield progress, lambda text: print(text, flush=True)


def panel(now: generator.Progress, settings: generator.Settings, elapsed: float) -> Group:
    """The live view: where the benchmark is, and the last few hundred answers."""
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(justify="right")
    table.add_row("rate", f"{now.rate:.1f} req/s", "in flight", str(now.concurrency))
    table.add_row("ttft p50", milliseconds(now.ttft_p50), "p95", milliseconds(now.ttft_p95))
    table.add_row("e2e p50", milliseconds(now.e2e_p50), "p95", milliseconds(now.e2e_p95))
    table.add_row("ok", str(now.ok), "failed", Text(str(now.failed), style="red" if now.failed else ""))
    errors = [Text(f"{kind}: {count}", style="red") for kind, count in (now.errors or {}).items()]
    head = Text(f"run {now.run} of {now.runs}: {now.phase}", style="bold")
    bar = ProgressBar(total=elapsed + now.eta, completed=elapsed, width=40)
    return Group(head, bar, Text(f"{now.eta:.0f} s left", style="dim"), table, *errors)


def summarize(result: Result, console: Console) -> None:
    """One line per run and why a run is invalid."""
    said = ", ".join(f"{key} {value}" for key, value in result.server.items())
    console.print(Text(f"{result.url} ({said})"), soft_wrap=True)
    table = Table(box=None, header_style="bold")
    table.add_column("")
    # A terminal has room for a few runs; the last ones stand for the rest, which the file has.
    shown = list(enumerate(result.runs, 1))[-6:]
    for number, run in shown:
        table.add_column(f"run {number}" if run.valid else f"run {number} !", justify="right")
    runs = [run for _, run in shown]
    table.add_row("warm-up", *(f"{run.warmup_seconds:.1f} s" for run in runs))
    table.add_row("ok / failed / cut", *(f"{run.ok} / {run.failed} / {run.cut}" for run in runs))
    for words, key in _RATES:
        if not any(key in run.metrics for run in runs):
            continue
        table.add_row(words, *(f"{run.metrics[key]:.2f}" if key in run.metrics else "-" for run in runs))
    for words, family in (("first token", "ttft"), ("between tokens", "itl"), ("end to end", "e2e")):
        for share in ("mean", "p50", "p95", "p99"):
            values = [run.metrics.get(f"{family}_{share}_seconds", float("nan")) for run in runs]
            if any(value == value for value in values):
                table.add_row(f"{words}, {share}", *(milliseconds(value) for value in values))
    console.print(table)
    for number, run in enumerate(result.runs, 1):
        if not run.valid:
            console.print(Text(f"run {number} is invalid: {run.invalid_because}", style="yellow"), soft_wrap=True)
        for kind, count in run.errors.items():
            console.print(Text(f"run {number}: {count} × {kind}", style="red"), soft_wrap=True)
