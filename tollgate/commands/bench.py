"""`tollgate bench`: measure a stack's service, a Service, or any URL."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.text import Text

import stacks
from bench import load as generator
from bench import report as reports
from bench import results

from . import _benching as benching

# At least so many are expected at every rate that --find-limit tries.
_ANSWERS = 60


class _RunByDefault(typer.core.TyperGroup):
    """`tollgate bench …` is `tollgate bench run …` unless the first word is one of the other commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure a stack, a Service or a URL. `bench …` is `bench run …`; see `tollgate bench run --help`.",
)

# --- what every command that measures takes

Stack = Annotated[
    str | None, typer.Argument(metavar="[STACK]", help="Take service, engine, model and traffic from it.")
]
Url = Annotated[str | None, typer.Option(help="Address of the service.")]
Service = Annotated[str | None, typer.Option(metavar="NAMESPACE/NAME[:PORT]", help="A Service of the cluster.")]
ClusterName = Annotated[
    str | None, typer.Option(help="The embedded cluster of that name; with a stack of another target, the context.")
]
Model = Annotated[str | None, typer.Option(help="The name by which the engine knows it.")]
Engine = Annotated[str | None, typer.Option(help="ollama, vllm or openai; default: the stack's, else openai.")]
Endpoint = Annotated[str, typer.Option(help="chat or generate.")]
Streamed = Annotated[bool, typer.Option("--stream/--no-stream", help="Read replies token by token.")]
PromptTokens = Annotated[
    float | None, typer.Option(min=1, help="Mean length of prompts; default: the stack's, or 128.")
]
PromptCv = Annotated[float, typer.Option(min=0, help="Coefficient of variation of that, log-normal.")]
MaxTokens = Annotated[float | None, typer.Option(min=1, help="Mean length of answers; default: the stack's, or 128.")]
MaxCv = Annotated[float, typer.Option("--max-tokens-cv", min=0, help="Coefficient of variation of that, log-normal.")]
ApiKey = Annotated[str, typer.Option(envvar="TOLLGATE_API_KEY", help="Sent as a bearer token.")]
Header = Annotated[list[str] | None, typer.Option(help="NAME: VALUE, added to every request.")]
CaFile = Annotated[str, typer.Option(help="PEM file of the authority to trust.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept any certificate.")]
Seed = Annotated[int, typer.Option(help="Of prompts, lengths and arrivals.")]
Processes = Annotated[
    int, typer.Option(min=1, max=256, help="Processes of this machine (or of each pod) that share the load.")
]
Pods = Annotated[int, typer.Option(min=0, max=1000, help="Send from so many pods of the cluster instead.")]
Prometheus = Annotated[str | None, typer.Option(help="Address of a Prometheus that scrapes the service.")]
CostPerHour = Annotated[float | None, typer.Option(min=0, help="US$ per hour of the whole service.")]
Machine = Annotated[str | None, typer.Option(help="Or: its machine type, priced by the price book,")]
Region = Annotated[str, typer.Option(help="in that region,")]
Nodes = Annotated[int, typer.Option(min=1, help="so many of them.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a request has failed.")]
Json = Annotated[
    Path | None, typer.Option("--json", "--output", help="Write the whole result there; - is standard output.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one page.")]


@app.command()
def run(
    name: Stack = None,
    url: Url = None,
    service: Service = None,
    cluster: ClusterName = None,
    model: Model = None,
    engine: Engine = None,
    endpoint: Endpoint = "chat",
    stream: Streamed = True,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Closed loop of so many users.")
    ] = None,
    think: Annotated[float, typer.Option(min=0, help="Seconds that a user waits before asking again.")] = 0.0,
    requests: Annotated[
        int | None, typer.Option(min=1, help="With --concurrency: a batch of so many, then stop.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.0, help="Open loop: Poisson arrivals per second.")] = None,
    constant: Annotated[bool, typer.Option("--constant", help="With --rate: evenly spaced instead.")] = False,
    burstiness: Annotated[
        float | None, typer.Option(min=0.0, help="With --rate: CV of the gaps, gamma-distributed; 1 is Poisson.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(metavar="RATE@SECONDS,…", help="Open loop in steps and ramps: 0-50@60,50@120.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay this JSONL or CSV of times and lengths.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="With --trace: so many times as fast.")] = 1.0,
    find_limit: Annotated[
        bool, typer.Option("--find-limit", help="Find knee and highest rate that holds, by bisection from --rate.")
    ] = False,
    precision: Annotated[float, typer.Option(min=0.005, max=0.5, help="Of --find-limit, as a share.")] = 0.05,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds of each run, after warm-up.")] = None,
    runs: Annotated[int | None, typer.Option(min=1, max=100, help="Samples.")] = None,
    prompt_tokens: PromptTokens = None,
    prompt_tokens_cv: PromptCv = 0.0,
    max_tokens: MaxTokens = None,
    max_tokens_cv: MaxCv = 0.0,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts or messages, or ShareGPT.")] = None,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with.")] = 0,
    prefix_groups: Annotated[int, typer.Option(min=1, help="With --shared-prefix: so many different ones.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Conversations of so many turns, each with all before it.")] = 1,
    reconnect: Annotated[bool, typer.Option("--reconnect", help="A new connection for every request.")] = False,
    timeout: Timeout = 600.0,
    api_key: ApiKey = "",
    header: Header = None,
    ca_file: CaFile = "",
    insecure: Insecure = False,
    seed: Seed = 1,
    processes: Processes = 1,
    pods: Pods = 0,
    prometheus: Prometheus = None,
    cost_per_hour: CostPerHour = None,
    machine: Machine = None,
    region: Region = "us-central1",
    nodes: Nodes = 1,
    promise: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=LIMIT", help="For goodput and --find-limit: ttft_p95_seconds=0.5, …"),
    ] = None,
    json_file: Json = None,
    html_file: Html = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a line for every run.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write a table of medians.")] = None,
    raw_file: Annotated[
        Path | None, typer.Option("--raw", help="Keep every request: *.parquet, or a line of JSON each.")
    ] = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Earlier --json files to set beside this one.")] = None,
) -> None:
    """Measure a STACK's service, a Service of a cluster (--service), or any address (--url … --model …).

    Ctrl-C ends it early and keeps what was measured, marked as such.
    """
    stack = stacks.load_stack(name) if name is not None else None
    earlier = [_earlier(path) for path in compare or []]
    scenario = generator.Scenario(
        burstiness=burstiness, stages=generator.stages_of(stages) if stages else (), trace=trace, speed=speed,
        prompts=prompts, prefix_tokens=shared_prefix, prefix_groups=prefix_groups, turns=turns, requests=requests,
    )  # fmt: skip
    if scenario.needs_chat and endpoint != "chat":
        raise stacks.InputError(
            where="--prompts and --turns", got=f"--endpoint {endpoint}", allowed="chat", fix="use --endpoint chat"
        )
    traffic = benching.traffic(
        stack, users=concurrency, think=think, rate=rate, constant=constant, prompt=(prompt_tokens, prompt_tokens_cv),
        answer=(max_tokens, max_tokens_cv), open_loop=bool(scenario.stages or trace or find_limit),
    )  # fmt: skip
    subject = benching.subject(
        stack, benching.place(url, service, cluster, stack), from_pods=pods > 0, engine=engine, model=model, endpoint=endpoint,
        costs=benching.costs(cost_per_hour, machine, region, nodes), promised=benching.promises(stack, promise or []),
        stream=stream, api_key=api_key,
        headers=tuple(benching.header(text) for text in header or []), ca_file=ca_file, insecure=insecure,
    )  # fmt: skip
    settings = generator.Settings(
        runs=runs or (stack.benchmark.runs if stack and stack.benchmark else 1),
        seconds=duration or (stack.benchmark.seconds if stack and stack.benchmark else 30.0),
        seed=seed, reconnect=reconnect, workers=processes, raw_file=raw_file, request_timeout=timeout,
        context_tokens=stack.release.context_tokens if stack else None,
    )  # fmt: skip
    console = Console(stderr=json_file == benching.STDOUT)
    measuring = benching.Measuring(
        subject=subject, traffic=traffic, settings=settings, scenario=scenario, console=console, pods=pods,
        observer=benching.observer(subject, prometheus, console),
    )  # fmt: skip
    if raw_file is not None and pods:
        raise stacks.InputError(
            where="--raw and --pods", got="both", allowed="one of them", fix="measure from this machine to keep records"
        )
    if find_limit:
        _limit(measuring, rate or 1.0, precision, json_file, html_file)
        return
    result = measuring()
    benching.written(json_file, result.model_dump_json(indent=1) + "\n")
    benching.written(html_file, reports.html([*earlier, result]))
    benching.written(csv_file, reports.csv([*earlier, result]))
    benching.written(markdown_file, reports.markdown([*earlier, result]))
    reports.summarize(result, console)
    for before in earlier:
        reports.differences(before, result, console)
    for words, path in (("result", json_file), ("report", html_file), ("records", raw_file)):
        if path not in (None, benching.STDOUT):
            console.print(f"{words}: {path}", soft_wrap=True)
    if not result.runs or not any(one.ok for one in result.runs):
        raise typer.Exit(1)


def _earlier(path: Path) -> results.Result:
    try:
        return results.Result.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise stacks.InputError(
            where=str(path), got=str(error).splitlines()[0], allowed="a file of --json", fix="name another"
        ) from error


def _limit(
    measuring: benching.Measuring, start: float, precision: float, json_file: Path | None, html_file: Path | None
) -> None:
    """Bisect to the highest rate that keeps the promises, or at which the service just keeps up."""
    objectives = measuring.subject.costs.objectives
    console, kept = measuring.console, []

    def measure(tried: float) -> results.Run:
        asked = measuring.traffic.model_copy(update={"requests_per_second": tried})
        # A slow rate takes longer to be known: fewer than twenty answers say nothing.
        seconds = max(measuring.settings.seconds, _ANSWERS / tried)
        once = replace(measuring, traffic=asked, settings=replace(measuring.settings, runs=1, seconds=seconds))
        with reports.live(console) as (progress, _):
            found = once.run(progress=progress) if console.is_terminal else once.run()
        kept.append(found)
        if not found.runs:
            raise stacks.TollgateError("interrupted before anything was measured")
        return found.runs[0]

    def say(step: generator.Step) -> None:
        words = Text(f"{step.rate:9.2f} requests/s: {step.because or 'holds'}", style="" if step.because else "green")
        console.print(words, soft_wrap=True)

    found = generator.sweep(measure, start=start, precision=precision, objectives=objectives, say=say)
    if found.interrupted:
        console.print(Text("interrupted: what was found until then", style="yellow"))
    console.print(Text(f"highest rate that holds: {found.highest:.2f} requests/s", style="bold"))
    if found.highest:
        console.print(f"knee (most rate for its latency): {found.knee:.2f} requests/s")
    limit = results.Limit(
        release=measuring.subject.release,
        stack=measuring.subject.name,
        url=measuring.subject.target.url,
        traffic=measuring.traffic,
        objectives=objectives,
        highest_requests_per_second=found.highest,
        lowest_refused_requests_per_second=found.lowest_refused if found.lowest_refused < float("inf") else None,
        knee_requests_per_second=found.knee,
        interrupted=found.interrupted,
        steps=tuple(
            results.LimitStep(requests_per_second=step.rate, because=step.because, run=step.run) for step in found.steps
        ),
        server=kept[0].server,
        tool_version=kept[0].tool_version,
    )
    benching.written(json_file, limit.model_dump_json(indent=1) + "\n")
    benching.written(html_file, reports.html([], limits=[limit]))


@app.command()
def matrix(
    name: Stack = None,
    url: Url = None,
    service: Service = None,
    cluster: ClusterName = None,
    model: Model = None,
    engine: Engine = None,
    endpoint: Endpoint = "chat",
    stream: Streamed = True,
    batches: Annotated[str, typer.Option(help="Requests of a batch, several with commas.")] = "1000,5000,10000",
    workers: Annotated[str, typer.Option(help="Workers, each with one request at a time.")] = "2,4,8,16,32",
    extrapolate: Annotated[str, typer.Option(help="Requests to say the time of.")] = "50000,170000",
    cell_seconds: Annotated[
        float | None, typer.Option(min=1, help="End a cell after so long; its rate is known long before.")
    ] = None,
    prompt_tokens: PromptTokens = None,
    prompt_tokens_cv: PromptCv = 0.0,
    max_tokens: MaxTokens = None,
    max_tokens_cv: MaxCv = 0.0,
    timeout: Timeout = 600.0,
    api_key: ApiKey = "",
    header: Header = None,
    ca_file: CaFile = "",
    insecure: Insecure = False,
    seed: Seed = 1,
    processes: Processes = 1,
    pods: Pods = 0,
    prometheus: Prometheus = None,
    json_file: Annotated[
        Path, typer.Option("--json", help="The result; a file that is there is gone on with; - is standard output.")
    ] = Path("matrix.json"),
    html_file: Html = None,
) -> None:
    """Measure batch sizes × workers: how many workers are best, and how long larger batches would take.

    Finished cells are kept in the --json file (with a log beside it), so that the same command goes on where it was ended.
    """
    # Not at the top: only this command needs what decides, and `bench run` is to send its first request at once.
    from bench import matrix as cells

    stack = stacks.load_stack(name) if name is not None else None
    subject = benching.subject(
        stack, benching.place(url, service, cluster, stack), from_pods=pods > 0, engine=engine, model=model,
        endpoint=endpoint, costs=generator.Costs(), stream=stream, api_key=api_key,
        headers=tuple(benching.header(text) for text in header or []), ca_file=ca_file, insecure=insecure,
    )  # fmt: skip
    traffic = benching.traffic(
        stack, users=1, think=0.0, rate=None, constant=False, prompt=(prompt_tokens, prompt_tokens_cv),
        answer=(max_tokens, max_tokens_cv),
    )  # fmt: skip
    console = Console(stderr=json_file == benching.STDOUT)
    settings = generator.Settings(
        runs=1, seed=seed, workers=processes, request_timeout=timeout, max_seconds=cell_seconds or math.inf
    )
    measuring = benching.Measuring(
        subject=subject, traffic=traffic, settings=settings, scenario=generator.Scenario(), console=console, pods=pods,
        observer=benching.observer(subject, prometheus, console),
    )  # fmt: skip
    plan = cells.Plan(
        batches=benching.numbers("--batches", batches),
        workers=benching.numbers("--workers", workers),
        forecasts=benching.numbers("--extrapolate", extrapolate),
        subject={
            "url": subject.target.url, "engine": subject.target.engine, "model": subject.target.model,
            "endpoint": endpoint, "stream": stream, "release": subject.release, "seed": seed, "pods": pods,
            "prompt_tokens": traffic.prompt_tokens.model_dump(), "output_tokens": traffic.output_tokens.model_dump(),
        },
        seed=seed,
    )  # fmt: skip
    if json_file == benching.STDOUT:
        # Nothing to go on with: what was measured until it ended is what is printed.
        with TemporaryDirectory() as folder:
            found = benching.matrix(plan, Path(folder) / "matrix.json", measuring)
        benching.written(json_file, found.model_dump_json(indent=1) + "\n")
    else:
        found = benching.matrix(plan, json_file, measuring)
    reports.show_matrix(found, console)
    benching.written(html_file, reports.html([], matrices=[found]))
    if json_file != benching.STDOUT:
        console.print(f"result: {json_file}", soft_wrap=True)
    if len(found.cells) < len(plan.order):
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="What --json wrote, of any kind.")],
    html_file: Html = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a line for every run.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write tables.")] = None,
) -> None:
    """Make the page, the table or the sheet of results measured before; several are set side by side."""
    found: dict[str, list[Any]] = {"result": [], "limit": [], "matrix": []}
    for path in files:
        one = results.read(path)
        found[type(one).__name__.lower()].append(one)
    benching.written(html_file, reports.html(found["result"], limits=found["limit"], matrices=found["matrix"]))
    benching.written(csv_file, reports.csv(found["result"]))
    text = reports.markdown(found["result"]) if found["result"] else ""
    text += "".join(reports.matrix_markdown(one) for one in found["matrix"])
    benching.written(markdown_file, text)
    if html_file is None and csv_file is None and markdown_file is None:
        typer.echo(text, nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of what --json writes."""
    typer.echo(results.schema())
