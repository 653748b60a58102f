# ruff: noqa: E501 - inputs are written as they are sent
"""Files that somebody hands to Tollgate."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import yaml

import planner
import preview
import stacks
import values
from bench import batch, load, report, results
from bench.batch import _segments
from bench.batch._model import Outcome, Strike
from planner import _catalog, _prices, _schema
from tests.gate.conftest import make_result

from ._target import Target

HERE = Path(__file__).resolve().parents[3]


def project(folder: Path) -> Path:
    """A copy of this project's stack files."""
    root = folder / "project"
    shutil.copytree(HERE / "stacks", root / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(HERE / "Pulumi.yaml", root)
    return root


def stack_files(folder: Path) -> list[Target]:
    """A stack's file: read, planned, rendered as Helm values and explained, as every command does."""
    root = project(folder)
    path = root / "stacks" / "Pulumi.fuzz.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        through(stacks.load_stack("fuzz", root))

    seeds = [one.read_bytes() for one in sorted((HERE / "stacks").glob("Pulumi.*.yaml"))]
    return [Target("stack", "yaml", seeds, run)]


def release_files(folder: Path) -> list[Target]:
    """A release's file, in a local stack and in one on Google Cloud."""
    root = project(folder)
    path = root / "stacks" / "releases" / "fuzz.yaml"
    for name in ("local-dev", "prod"):
        text = (root / "stacks" / f"Pulumi.{name}.yaml").read_text()
        old = next(line for line in text.splitlines() if "tollgate:release:" in line)
        (root / "stacks" / f"Pulumi.fuzz-{name}.yaml").write_text(text.replace(old, "  tollgate:release: fuzz"))

    def run(data: bytes) -> None:
        path.write_bytes(data)
        stacks.load_release("fuzz", root)
        # In one of the two, by the input itself: both would take twice as long.
        through(stacks.load_stack(("fuzz-local-dev", "fuzz-prod")[zlib.crc32(data) % 2], root))

    seeds = [one.read_bytes() for one in sorted((HERE / "stacks" / "releases").glob("*.yaml"))]
    # Those first that fit the machines of these two stacks.
    seeds.sort(key=lambda seed: b"gpu: nvidia-l4" not in seed)
    return [Target("release", "yaml", seeds, run)]


def through(stack: stacks.Stack) -> None:
    """All that is made of a stack without a cluster."""
    values.chart_of(stack.release)
    values.release_digest(stack.release)
    values.render(stack, planner.plan(stack))
    planner.report_markdown(planner.rendered(planner.report_stack(stack)))


_LIMITS = b"""
comment_above_usd_per_hour: 0.05
old_prices_days: 90
days: {local-dev: [0.1, 0.5, 1.0], prod: [1]}
budgets:
  - {stacks: ["prod*"], together: true, at: max, warn: {usd_per_hour: 50}, fail: {increase_percent: 20, increase_usd_per_hour: 5.5}}
quotas:
  - {gpu: nvidia-l4, region: us-central1, gpus: 16, spot: true}
rules:
  - {name: no-h100, stacks: ["*"], gpus: ["*h100*"], level: fail, message: too dear, nodes_above: 3, mig: false, regions: ["us-*"]}
"""


def pipeline_files(folder: Path) -> list[Target]:
    """The pipeline, and the limits of the preview."""
    root = project(folder)
    order, limits = root / "stacks" / "pipeline.yaml", root / "stacks" / "preview.yaml"

    def run(data: bytes) -> None:
        order.write_bytes(data)
        found = stacks.load_pipeline(root)
        for stage in found.stages:
            found.home(stage.stack)

    def bound(data: bytes) -> None:
        limits.write_bytes(data)
        preview.load_limits(root)

    return [
        Target("pipeline", "yaml", [(HERE / "stacks" / "pipeline.yaml").read_bytes()], run),
        Target("limits", "yaml", [_LIMITS], bound),
    ]


def price_files(folder: Path) -> list[Target]:
    """Price books and the catalog."""
    books = [one.read_bytes() for one in sorted((_catalog.FOLDER / "prices").glob("*.csv"))]
    # The head and a few rows: a book of thousands is only slower.
    books = [b"".join(book.splitlines(keepends=True)[:6]) for book in books]
    catalog = _catalog.sources()

    def book(data: bytes) -> None:
        path = folder / "book.csv"
        path.write_bytes(data)
        planner.price_book.__wrapped__(path)
        with contextlib.suppress(UnicodeDecodeError):
            found = _prices.parse_book(data.decode(), source="fuzz")
            with contextlib.suppress(stacks.InputError):
                found.price("none", region="nowhere")
            assert found.as_of
            assert all(found.hourly(name, region=region) for region, name in found.prices)

    def compiled(data: bytes) -> None:
        try:
            given = yaml.load(data, Loader=yaml.CSafeLoader)
            name, content = given["file"], yaml.safe_dump(given["content"]).encode()
        except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError):
            return
        if isinstance(name, str) and name in catalog:
            _catalog.parse(_schema.compile_catalog({**catalog, name: content}))

    files = [
        yaml.safe_dump({"file": name, "content": yaml.load(content, Loader=yaml.CSafeLoader)}).encode()
        for name, content in catalog.items()
    ]
    return [Target("prices", "text", books, book), Target("catalog", "yaml", files, compiled)]


def batch_files(folder: Path) -> list[Target]:
    """A batch's input in its three formats, by two recipes."""
    import pyarrow
    import pyarrow.parquet

    recipes = [batch.Recipe(model="m"), batch.Recipe(model="m", template="{prompt}!", system="be {id}", id_column="id")]

    def reader(kind: Any) -> Any:
        path = folder / f"in.{kind}"

        def run(data: bytes) -> None:
            path.write_bytes(data)
            for recipe in recipes:
                with contextlib.suppress(stacks.InputError):
                    for row in batch.read(str(path), recipe, kind):
                        assert isinstance(row, batch.BadRow) or json.loads(row.body)
            for _ in batch.read(str(path), recipes[0], kind):
                pass

        return run

    def segment(data: bytes) -> None:
        # Packed again, so that not only its checksum is wrong.
        for one in _segments.unpack(gzip.compress(data, 1), "fuzz"):
            assert one

    outcome = Outcome(1, 200, "", b'{"usage": {}}', 1, 2, 0.0, 1.0, 1, "e")
    unpacked = gzip.decompress(_segments.pack([outcome, outcome], [Strike(1, 2, 0, "http_500")], owner="o"))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    lines = [request, {"prompt": "why", "id": "x"}, {"custom_id": "c", "messages": chat["messages"]}]
    jsonl = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b'"only text"\n'
    table = pyarrow.table({"id": ["a", "b"], "prompt": ["why", "how"], "n": [1, None], "t": [[1], [2, 3]]})
    seeds = []
    for compression in ("none", "snappy", "zstd"):
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file, compression=compression)
        seeds.append(file.getvalue())
    csv = ['id,prompt\na,why\nb,"how, ""so""\n"\n', "prompt\nwhy\n", "\ufeffid;prompt\na;b\n"]
    return [
        Target("batch-jsonl", "lines", [jsonl], reader("jsonl")),
        Target("batch-csv", "text", [one.encode() for one in csv], reader("csv")),
        Target("batch-parquet", "bytes", seeds, reader("parquet")),
        Target("batch-segment", "lines", [unpacked], segment),
    ]


def trace_files(folder: Path) -> list[Target]:
    """Traces to replay and files of prompts."""
    own = b"".join(b'{"time": %d, "prompt_tokens": %d, "output_tokens": 9}\n' % (n, 700 * n + 1) for n in range(4))
    moon = b'{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n' * 2
    azure = (
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.99,396,109\n"
    )
    burst = (
        b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    )
    said = b'{"prompt": "hi"}\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n'
    shared = b'[{"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}]'

    def trace(name: str) -> Any:
        path = folder / name

        def run(data: bytes) -> None:
            path.write_bytes(data)
            found = load.read_trace(path)
            moments = found.load(speed=2.0, seconds=60.0).moments
            assert list(moments) == sorted(moments)
            source = found.source(1)
            for serial in range(min(3, len(found.moments))):
                if found.prompt_tokens[serial] < 100_000:
                    source(serial)

        return run

    def dialogues(data: bytes) -> None:
        path = folder / "prompts.jsonl"
        path.write_bytes(data)
        asks = load.Conversations(load.read_dialogues(path), [5])
        json.loads(asks(0).content)

    return [
        Target("trace-jsonl", "lines", [own, moon], trace("trace.jsonl")),
        Target("trace-csv", "text", [azure, burst], trace("trace.csv")),
        Target("dialogues", "lines", [said, shared], dialogues),
    ]


def result_files(folder: Path) -> list[Target]:
    """Results of a benchmark, and the documents of a preview, which are read, shown and compared."""
    path = folder / "r.json"
    release = stacks.load_release("gemma-3-4b-ollama-8", HERE)
    given = json.loads(make_result().model_dump_json())
    given["runs"] = given["runs"][:2]
    given["runs"][0]["series"] = {"seconds": [1, 2, None], "requests_per_second": [1.0, None, 2.0]}
    limit = {
        "kind": "limit", "release": given["release"], "stack": "s", "url": "http://h", "traffic": given["traffic"], "tool_version": "1",
        "highest_requests_per_second": 2.0, "lowest_refused_requests_per_second": None, "knee_requests_per_second": 1.0,
        "steps": [{"requests_per_second": 2.0, "because": "", "run": given["runs"][0]}],
    }  # fmt: skip

    def result(data: bytes) -> None:
        path.write_bytes(data)
        # Of the kinds of file, the planner reads one.
        with contextlib.suppress(stacks.InputError):
            planner.calibrate(planner.read_results(path), release=release)
        found = results.read(path)
        if isinstance(found, results.Result):
            report.html([found, found])
            report.markdown([found, found])
            report.csv([found])
        elif isinstance(found, results.Limit):
            report.html([], limits=[found])

    seeds = [json.dumps(one, indent=1).encode() for one in (given, limit)]
    return [Target("result", "json", seeds, result)]
