"""`tollgate batch`: many prompts through one or several endpoints, each answered once, whatever happens on the way."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

import stacks
from bench import batch as room

from . import _batching as batching
from . import _benching as benching
from ._saying import Json, machine

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Many prompts through one or several endpoints, each answered once, whatever happens on the way.",
)

Store = Annotated[
    str | None,
    typer.Option(
        envvar="TOLLGATE_BATCHES",
        help="Where batches lie: a folder, postgresql://…, s3://… or gs://…; default: .tollgate/batches.",
    ),
]
Id = Annotated[str, typer.Argument(metavar="BATCH", help="Its id, or how it begins.")]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        "-e",
        metavar="URL|STACK[,slots=N,per_hour=USD,…]",
        help="Who answers; repeatable: shared by capacity.",
    ),
]
FormatOption = Annotated[str, typer.Option("--format", help="jsonl, csv, parquet; auto: by the file's name.")]
Model = Annotated[str | None, typer.Option(help="Asked for instead of what the inputs say.")]
Template = Annotated[str | None, typer.Option(help="Prompt of each row: 'Summarize: {column}'.")]
System = Annotated[str | None, typer.Option(help="System message of each row, a template as well.")]
IdColumn = Annotated[str | None, typer.Option(help="Column that tells rows apart; default: custom_id, else the row.")]
PathOption = Annotated[str, typer.Option("--path", help="Of the API, for rows that do not say.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=JSON", help="Into every body: max_tokens=256.")]
Priority = Annotated[int | None, typer.Option(help="vLLM's priority; above 0 waits for interactive users.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="List rows that are no requests as failed, and go on.")]
Shards = Annotated[
    int, typer.Option(min=1, max=10_000, help="Parts of a batch in a bucket, for so many runners at once.")
]
Deadline = Annotated[str | None, typer.Option(help="8h, 2d or 2030-01-31T08:00: warn when it cannot be kept.")]
Budget = Annotated[float | None, typer.Option(min=0, help="US$: warn when it cannot be kept.")]
CostPerHour = Annotated[
    float | None, typer.Option(min=0, help="US$ per hour of all endpoints; of stacks: by their plan.")
]
CostIn = Annotated[float | None, typer.Option("--cost-per-million-in", min=0, help="US$ per million prompt tokens.")]
CostOut = Annotated[float | None, typer.Option("--cost-per-million-out", min=0, help="US$ per million answer tokens.")]
Tries = Annotated[
    int, typer.Option(min=1, max=100, help="Failures of its own after which an input is listed as failed.")
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")]
StopAfter = Annotated[int, typer.Option(min=0, help="So many failed inputs in a row pause the batch; 0: never.")]
Patience = Annotated[float, typer.Option(min=1, help="Seconds without any answer from anywhere, then the run ends.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", "-c", min=1, help="Requests at once per endpoint; default: found.")
]
Share = Annotated[float | None, typer.Option(min=0.01, max=1, help="Of the slots at most, the rest is for others.")]
ApiKey = Annotated[str, typer.Option(envvar="TOLLGATE_API_KEY", help="Bearer token; never stored.")]
Header = Annotated[list[str] | None, typer.Option(help="NAME: VALUE, added to every request; never stored.")]
CaFile = Annotated[str, typer.Option(help="PEM file of the authority to trust.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept any certificate.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Answers as JSONL: a file, -, s3:// or gs://.")]
Errors = Annotated[str | None, typer.Option(help="Failures as JSONL.")]


@app.command()
def submit(
    source: Annotated[str, typer.Argument(metavar="FILE", help="JSONL, CSV or Parquet; -, s3:// and gs:// too.")],
    endpoint: Endpoints = None,
    store: Store = None,
    id: Annotated[str, typer.Option(help="Its name; default: one is made.")] = "",
    format: FormatOption = "auto",
    model: Model = None,
    template: Template = None,
    system: System = None,
    id_column: IdColumn = None,
    path: PathOption = "/v1/chat/completions",
    set_: Set = None,
    priority: Priority = None,
    skip_bad: SkipBad = False,
    shards: Shards = 1,
    deadline: Deadline = None,
    budget: Budget = None,
    cost_per_hour: CostPerHour = None,
    cost_in: CostIn = None,
    cost_out: CostOut = None,
    as_json: Json = False,
) -> None:
    """Put the requests of FILE into a durable queue and print the batch's id. Nothing is asked yet.

    FILE is in OpenAI's Batch format, or rows of columns with a --template (or a column `prompt`).
    """
    given = [room.endpoint_words(text) for text in endpoint or []]
    if format not in ("auto", "jsonl", "csv", "parquet"):
        raise stacks.InputError(
            where="--format", got=format, allowed="auto, jsonl, csv, parquet", fix="name one of these"
        )
    kind: room.Format = format  # type: ignore[assignment]
    recipe = room.Recipe(
        model=model or _one_model(given), template=template, system=system, id_column=id_column, path=path,
        extra=batching.extra(set_ or [], priority),
    )  # fmt: skip
    prices = room.Prices(per_hour=cost_per_hour, per_million_in=cost_in, per_million_out=cost_out)
    settings = {
        "source": source, "endpoints": given, "prices": batching.as_settings(prices), "budget": budget,
        "deadline": batching.deadline(deadline),
    }  # fmt: skip
    queue = room.create(
        _store(store), room.read(source, recipe, kind), settings=settings, id=id, skip_bad=skip_bad, source=source,
        shards=shards,
    )  # fmt: skip
    counts = queue.counts()
    failed = f", {counts.failed:,} of them are no requests" if counts.failed else ""
    console = Console(stderr=True)
    for line in batching.told(queue, given, settings):
        console.print(Text(line))
    console.print(Text(f"{counts.total:,} inputs{failed}; run them: tollgate batch run {queue.id}"))
    if as_json:
        machine(room.status(queue).as_json())
    else:
        typer.echo(queue.id)


def _one_model(endpoints: list[dict[str, Any]]) -> str | None:
    """The model of a stack is what its inputs ask for, without saying it again."""
    for one in endpoints:
        if one.get("model"):
            return str(one["model"])
        if not str(one["where"]).startswith(("http://", "https://")):
            return stacks.load_stack(str(one["where"])).release.source
    return None


@app.command()
def run(
    id: Id,
    endpoint: Endpoints = None,
    store: Store = None,
    output: Output = None,
    errors: Errors = None,
    concurrency: Concurrency = None,
    share: Share = None,
    tries: Tries = 5,
    timeout: Timeout = 600.0,
    stop_after: StopAfter = 100,
    patience: Patience = 3600.0,
    deadline: Deadline = None,
    budget: Budget = None,
    api_key: ApiKey = "",
    header: Header = None,
    ca_file: CaFile = "",
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Work on a batch until it is done; again after whatever stopped it. Several runners may work on the same one.

    Ctrl-C lets finish what is in flight. Exit code: 0 done, 1 paused by its failures, 130 stopped before its end.
    """
    _apart(output, as_json)
    queue = room.open_queue(_store(store), id)
    info = queue.info()
    given = [room.endpoint_words(text) for text in endpoint or []] or list(info.settings.get("endpoints") or [])
    like = batching.typical(queue)
    found = batching.chosen(
        given, api_key=api_key, headers=[benching.header(text) for text in header or []], ca_file=ca_file,
        insecure=insecure, concurrency=concurrency, share=share, like=like,
    )  # fmt: skip
    prices = batching.prices(info.settings, found.per_hour)
    until = batching.deadline(deadline) or info.settings.get("deadline")
    most = budget if budget is not None else info.settings.get("budget")
    console = Console(stderr=True, soft_wrap=True)
    if info.state == "running":
        for line in batching.at_once(queue, like, found.expected, prices, until, most):
            console.print(Text(line))
    settings = room.RunSettings(
        tries=tries, timeout=timeout, stop_after=stop_after, patience=patience, prices=prices, deadline=until, budget=most
    )  # fmt: skip
    shown = _Shown(console)
    with shown:
        ending = room.run(
            queue, found.endpoints, settings, progress=lambda progress: shown.show(room.of_progress(info, progress))
        )
    try:
        _ended(console, queue, ending, prices, output, errors)
    finally:
        # Also of a run that was stopped or paused, which its exit code says besides.
        if as_json:
            machine(room.status(queue).as_json())


def _apart(output: str | None, as_json: bool) -> None:
    if as_json and output == "-":
        raise stacks.InputError(
            where="--json",
            got="--output -",
            allowed="one of them on standard output",
            fix="write the answers to a FILE",
        )


def _ended(
    console: Console,
    queue: room.Queue,
    ending: room.Ending,
    prices: room.Prices,
    output: str | None,
    errors: str | None,
) -> None:
    counts = ending.counts
    console.print(
        Text(f"{queue.id}  {ending.state}: {counts.ok:,} answered, {counts.failed:,} failed, {counts.left:,} left")
    )
    if ending.state == "done" and output is not None:
        room.write(queue, output, errors, prices=prices)
    elif ending.state == "done":
        console.print(Text(f"results: tollgate batch results {queue.id} -o FILE --errors FILE"))
    if ending.state == "paused" and not ending.stopped:
        raise stacks.TollgateError(
            f"batch {queue.id} is paused: {ending.reason}\n"
            f"  fix: mend the cause, then: tollgate batch resume {queue.id} (--retry-failed asks the failures again)"
        )
    if ending.state in ("running", "paused"):
        first = f"tollgate batch resume {queue.id}, then " if ending.state == "paused" else ""
        console.print(Text(f"go on: {first}tollgate batch run {queue.id}"))
        raise typer.Exit(130)


class _Shown:
    """Progress on a terminal in place, in a log now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last = 0.0
        self._said: set[str] = set()

    def __enter__(self) -> None:
        if self._live is not None:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, found: room.Status, state: str = "") -> None:
        """Once a second is enough for eyes, once in ten for a log; what is wrong is said at once."""
        lines = room.status_text(found, state=state)
        if self._live is not None:
            self._live.update(Text("\n".join(lines)), refresh=True)
            return
        new = {line.strip()[:24] for line in lines if line.startswith(("  STOPPED", "  WARNING"))} - self._said
        if new or time.monotonic() - self._last >= 10:
            self._said |= new
            self._last = time.monotonic()
            self._console.print(Text("\n".join(lines)))


@app.command()
def status(
    id: Annotated[str, typer.Argument(metavar="[BATCH]", help="Its id; without: all batches.")] = "",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """How far a batch is: done, rate, time left, tokens, dollars, per endpoint."""
    where = _store(store)
    found = [_status(where, name) for name in ([id] if id else room.ids(where))]
    found.sort(key=lambda one: one.info.created)
    if as_json:
        shown = [one.as_json() for one in found]
        machine(shown[0] if id else shown)
        return
    if not found:
        Console(stderr=True).print("no batches; submit one: tollgate batch submit FILE --endpoint URL")
    for one in found:
        typer.echo("\n".join(room.status_text(one) if id else room.status_text(one)[:1]))


def _status(store: str, id: str) -> room.Status:
    queue = room.open_queue(store, id)
    try:
        return room.status(queue)
    finally:
        queue.close()


@app.command()
def watch(id: Id, store: Store = None, as_json: Json = False) -> None:
    """Follow a batch until it is done, cancelled or paused, whoever runs it."""
    queue = room.open_queue(_store(store), id)
    shown = _Shown(Console(stderr=True, soft_wrap=True))
    with shown:
        while (found := room.status(queue)).info.state == "running":
            shown.show(found)
            time.sleep(1)
    _say(found, as_json)


def _say(found: room.Status, as_json: bool, short: str = "") -> None:
    if as_json:
        machine(found.as_json())
    else:
        typer.echo(short or "\n".join(room.status_text(found)))


@app.command()
def pause(id: Id, store: Store = None, as_json: Json = False) -> None:
    """Send nothing more; what is in flight finishes. Its runners wait."""
    _change(store, id, "paused", as_json, reason="by hand")


@app.command()
def resume(
    id: Id,
    store: Store = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the failures once more.")] = False,
    as_json: Json = False,
) -> None:
    """Let a paused batch go on; its runners that wait do so at once."""
    queue = room.open_queue(_store(store), id)
    if retry_failed:
        typer.echo(f"{queue.reopen_failed():,} failures will be asked again", err=as_json)
    if queue.info().state == "paused":
        queue.set_state("running")
    found = room.status(queue)
    if found.info.state != "running":
        fix = "\n  fix: submit it again" if found.info.state == "cancelled" else ""
        raise stacks.TollgateError(f"batch {queue.id} is {found.info.state}{fix}")
    _say(found, as_json)


@app.command()
def cancel(id: Id, store: Store = None, as_json: Json = False) -> None:
    """End a batch for ever; what has been answered stays."""
    _change(store, id, "cancelled", as_json)


def _change(store: str | None, id: str, state: room.State, as_json: bool, *, reason: str = "") -> None:
    queue = room.open_queue(_store(store), id)
    if not queue.set_state(state, reason=reason):
        raise stacks.TollgateError(f"batch {queue.id} is {queue.info().state} already")
    _say(room.status(queue), as_json, f"{queue.id}  {state}")


@app.command()
def results(id: Id, store: Store = None, output: Output = "-", errors: Errors = None, as_json: Json = False) -> None:
    """Write what has been answered until now, in the order of the input; failures apart with --errors."""
    _apart(output or "-", as_json)
    queue = room.open_queue(_store(store), id)
    settings = queue.info().settings
    known = batching.prices(settings, batching.hourly(settings.get("endpoints") or []))
    good, failed = room.write(queue, output or "-", errors, prices=known)
    if as_json:
        said = {"id": queue.id, "answers": good, "failures": failed, "left": queue.counts().left}
        machine({**said, "output": output, "errors": errors})
        return
    apart = "" if errors or not failed else " (--errors FILE writes them)"
    Console(stderr=True).print(Text(f"{good:,} answers, {failed:,} failures{apart}, {queue.counts().left:,} left"))


@app.command()
def job(
    id: Annotated[str, typer.Argument(metavar="BATCH", help="Its id, or the one that --input gets.")],
    endpoint: Endpoints = None,
    pods: Annotated[int, typer.Option(min=1, max=1000, help="Runners.")] = 8,
    input: Annotated[str | None, typer.Option(help="Submitted by the first pod, unless the batch is there.")] = None,
    model: Model = None,
    template: Template = None,
    store: Annotated[str | None, typer.Option(help="As pods reach it; without a password in it.")] = None,
    secret: Annotated[
        str | None, typer.Option(metavar="NAME/KEY", help="Or: the Secret that holds its address.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Of the Job.")] = "default",
    shards: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Of a batch in a bucket; default: as many as pods.")
    ] = None,
    credentials: Annotated[
        str | None, typer.Option(help="Secret whose keys pods get as environment variables.")
    ] = None,
    service_account: Annotated[str | None, typer.Option(help="Of the pods, for workload identity.")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="On spot machines of GKE.")] = False,
) -> None:
    """Print a Kubernetes Job whose pods work on a batch together: tollgate batch job … | kubectl apply -f -"""
    # Late: the other commands need no templates.
    import values

    found = values.batch_job(
        id, endpoints=endpoint or [], pods=pods, input=input, model=model, template=template, store=store, secret=secret,
        namespace=namespace, spot=spot, shards=shards, credentials=credentials, service_account=service_account,
    )  # fmt: skip
    machine(found)


@app.command()
def serve(
    endpoint: Endpoints = None,
    store: Store = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8099,
    key: Annotated[str, typer.Option(envvar="TOLLGATE_BATCH_KEY", help="Ask clients for it.")] = "",
    concurrency: Concurrency = None,
    share: Share = None,
    tries: Tries = 5,
    timeout: Timeout = 600.0,
    api_key: ApiKey = "",
) -> None:
    """Serve OpenAI's Batch API (/v1/files, /v1/batches) over the endpoints; batches go on after a restart."""
    given = [room.endpoint_words(text) for text in endpoint or []]
    found = batching.chosen(
        given, api_key=api_key, headers=(), ca_file="", insecure=False, concurrency=concurrency, share=share,
        like=batching.Typical(),
    )  # fmt: skip
    where = _store(store)
    if room.is_postgres(where) or room.is_bucket(where):
        raise stacks.InputError(
            where="--store", got="a database or a bucket", allowed="a folder", fix="files of clients lie in it too"
        )
    settings = room.RunSettings(tries=tries, timeout=timeout, prices=room.Prices(per_hour=found.per_hour))
    with room.Service(Path(where), found.endpoints, settings, host=host, port=port, key=key) as service:
        Console(stderr=True).print(Text(f"OpenAI's Batch API at {service.url}/v1"))
        sys.stderr.flush()
        service.wait()


def _store(given: str | None) -> str:
    return given or batching.default_store()
