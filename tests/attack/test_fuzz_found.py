# ruff: noqa: E501 - inputs are written as they are sent
"""What `make fuzz` found to end in a traceback, or worse: each input again, by the target that broke."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

import gate
import planner
import preview
import stacks
from bench import batch, load, report, results
from bench.batch import _judge, _segments
from bench.job import _together
from bench.load import _observe, _replay
from bench.report import _svg
from components import benchmark
from local.provider import _helm
from local.provider._errors import ProviderError
from planner import _prices, _schema
from tests.attack.fuzz import GROUPS, Target
from tests.gate.conftest import World, make_result, make_world

DEEP = "[" * 100_000
HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


def http(text: str) -> bytes:
    return HTTP % (len(text), text.encode())


def changed(seed: bytes, *path: Any, to: Any) -> bytes:
    """The JSON with one value put elsewhere."""
    whole = json.loads(seed)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return json.dumps(whole).encode()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Target]:
    made: dict[str, list[Target]] = {}

    def found(group: str, name: str) -> Target:
        if group not in made:
            made[group] = GROUPS[group](tmp_path_factory.mktemp(group))
        return next(target for target in made[group] if target.name == name)

    return found


Find = Callable[[str, str], Target]


@pytest.mark.parametrize("seed", ["\xb2", "--5", "-", "\u0663", "9" * 30])
def test_a_text_that_looks_like_a_number_is_no_fault_of_the_simulators(target: Find, seed: str) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "seed": seed})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert target("simulator", "vllm-server").attempt((head + body).encode()) == ""


def test_a_number_longer_than_python_reads_is_no_fault_of_the_simulators(target: Find) -> None:
    body = '{"prompt": ' + "9" * 5000 + "x"
    head = f"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    assert target("simulator", "vllm-server").attempt((head + body).encode()) == ""


def test_a_price_of_a_year_of_thirty_digits_is_refused() -> None:
    hourly = ",".join(f"{kind}_usd_per_hour" for kind in ("on_demand", "spot", "commit_1y", "commit_3y"))
    head = f"cloud,region,machine_type,gpu,gpu_count,{hourly},source,as_of,note"
    row = f"gcp,us-central1,g2-standard-8,nvidia-l4,1,0.85,0.48,,,a list,{'9' * 30}-07-30,"
    with pytest.raises(stacks.InputError, match="2026, 2026-08 or 2026-08-31"):
        _prices.parse_book(f"{head}\n{row}\n", source="book.csv")


def test_a_slice_of_more_memory_than_a_float_holds_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 1000000000000000"):
        pydantic.TypeAdapter(_schema._Count).validate_python(10**400)


@pytest.mark.parametrize(
    "error",
    [NotImplementedError("Integers with less than 8 bits"), MemoryError(), KeyError("x"), OverflowError()],
    ids=repr,
)
def test_a_parquet_file_that_arrow_cannot_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import pyarrow.parquet

    def broken(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", broken)
    with pytest.raises(stacks.InputError, match="a Parquet file"):
        list(batch.read(str(tmp_path / "a.parquet"), batch.Recipe(model="m")))


def test_a_price_book_is_bounded_whatever_limit_another_reader_has_set(tmp_path: Path) -> None:
    before = csv.field_size_limit(64 << 20)
    (tmp_path / "book.csv").write_text(
        f"cloud,region,machine_type,on_demand_usd_per_hour,spot_usd_per_hour,source,as_of,note\ngcp,r,{'x' * 200_000},1,,s,2026,\n"
    )
    try:
        with pytest.raises(stacks.InputError, match="short fields"):
            planner.price_book(tmp_path / "book.csv")
    finally:
        csv.field_size_limit(before)


def test_a_model_of_more_parameters_than_a_number_holds_is_refused() -> None:
    from planner import _catalog, _schema

    files = _catalog.sources()
    text = re.sub(rb"layers: \d+", b"layers: " + b"9" * 400, files["models/gemma.yaml"], count=1)
    assert text != files["models/gemma.yaml"]
    with pytest.raises(stacks.InputError, match=r"models/gemma\.yaml"):
        _schema.compile_catalog({**files, "models/gemma.yaml": text})


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        # More than a row of the records holds, and more than any number does.
        ("sse-body", b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":9999999999}}\n\ndata: [DONE]\n\n'),
        ("sse-body", b'data: {"choices":[],"usage":{"prompt_tokens":%b,"completion_tokens":3}}\n\ndata: [DONE]\n\n' % (b"9" * 900)),
        ("ndjson-body", b'{"done":true,"total_duration":%b,"eval_count":2147483648}\n' % (b"9" * 900)),
        ("whole-body", b'{"choices":[],"usage":{"prompt_tokens":4294967296,"completion_tokens":3}}'),
        # Tokens that a database could not add up.
        ("whole-body", b'{"choices":[],"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":3}}'),
    ],
)  # fmt: skip
def test_no_count_that_a_server_tells_ends_the_load_generator(target: Find, name: str, tail: bytes) -> None:
    one = target("streams", name)
    assert one.attempt(tail) == ""
    assert one.attempt(one.seeds[0] + tail) == ""


def test_so_many_frames_in_one_read_are_counted(target: Find) -> None:
    body = b'\n{"response":"a"}' + b'\n{"' * 70_000 + b'\n{"done":true}\n'
    assert target("streams", "ndjson-http").attempt(HTTP % (len(body), body)) == ""


@pytest.mark.parametrize("date", ["Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "1e999", "nan", "\xb2"])
def test_no_time_to_wait_is_too_long(date: str) -> None:
    assert 0 <= _judge.seconds_of(date.encode("latin-1")) <= 3600


@pytest.mark.parametrize(
    ("host", "origin"), [("[", ""), ("[x]", ""), ("localhost", "http://[DONE]"), ("localhost", "//[")]
)
def test_what_is_no_address_is_foreign(host: str, origin: str) -> None:
    assert stacks.foreign(bound="127.0.0.1", host=host, origin=origin)


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "+3", "1_0"])
def test_what_is_no_length_is_asked_for(target: Find, length: str) -> None:
    api = target("services", "batch-api")
    for start in (f"POST /v1/batches HTTP/1.1\r\nContent-Length: {length}", f"GET /v1/files?limit={length} HTTP/1.1"):
        assert api.attempt(f"{start}\r\nHost: localhost\r\n\r\n".encode("latin-1")) == ""


@pytest.mark.parametrize(
    "line",
    ['{"time": 1, "prompt_tokens": 1, "output_tokens": 1e999}', '{"time": NaN, "prompt_tokens": 1, "output_tokens": 1}',
     '{"time": 1, "prompt_tokens": -5, "output_tokens": 1}',
     '{"time": 1, "prompt_tokens": 1e300, "output_tokens": 1}', '{"time": 1, "prompt_tokens": 2101000000, "output_tokens": 1}', DEEP],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_a_trace_of_what_cannot_be_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(stacks.InputError):
        load.read_trace(tmp_path / "t.jsonl")


@pytest.mark.parametrize("text", [DEEP, '{"messages": ["a"]}', '{"prompt": "\\ud800"}', "5", '{"messages": {"a": 1}}'])
def test_prompts_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(stacks.InputError):
        _replay.Conversations(load.read_dialogues(tmp_path / "p.jsonl"), [1])


def test_a_metric_that_is_no_number_is_left_out() -> None:
    assert _observe.scraped("vllm:num_requests_running 1.2.3\nvllm:num_requests_waiting 2\n") == {"server_waiting": 2.0}


@pytest.mark.parametrize(
    "said",
    ["[]", DEEP, '{"data": {"result": [{"values": [[Infinity, "1"]]}]}}', '{"data": {"result": {"a": 1}}}',
     '{"data": {"result": [{"values": [[%s, "1"]]}]}}' % ("9" * 400), '{"data": [1]}'],
    ids=lambda said: said[:30],
)  # fmt: skip
def test_an_answer_that_is_not_prometheus_is_only_said(target: Find, said: str) -> None:
    one = target("metrics", "prometheus")
    assert one.attempt(http(said)) == ""
    assert one.attempt(http(said).replace(b"200 OK", b"500 No")) == ""


@pytest.mark.parametrize(
    "said", ['{"data": [5]}', '{"data": 1.5}', '{"models": [[]]}', '{"models": [{"name": "m", "details": [1]}]}', DEEP]
)
def test_an_engine_that_says_nonsense_of_itself_is_measured_without(target: Find, said: str) -> None:
    assert target("metrics", "engine").attempt(http(said)) == ""


@pytest.mark.parametrize("text", ["{}", "[]", DEEP, json.dumps({"result": {}})])
def test_a_pod_that_leaves_no_result_is_told(text: str) -> None:
    found = _together.Pieces()
    for line in _together.pieces(text):
        found.take(line)
    with pytest.raises(stacks.TollgateError):
        found.result()
    with pytest.raises(stacks.TollgateError):
        results.read_pair(text)
    with pytest.raises((ValueError, TypeError)):
        _together.progress_of(_together.PROGRESS + '["a"]')


@pytest.mark.parametrize("packed", ["x", "eA==", "H4sIAAAAAAAAA", "H4sIAAAAAAAC/0tMBABVvgp6AwAAAA=="])
def test_a_config_map_that_cannot_be_unpacked_is_told(packed: str) -> None:
    with pytest.raises(stacks.TollgateError, match="cannot be unpacked"):
        benchmark.result_text(None, {"result.json": packed})


@pytest.mark.parametrize("value", [".", "1.2.3", "1u", "1n", "1e9999999", "5.", ".5", "1E", "1e3"])
def test_a_node_has_what_its_annotation_says_only_where_that_is_a_quantity(target: Find, value: str) -> None:
    assert target("cluster", "annotations").attempt(json.dumps({"cpu": value, "nvidia.com/gpu": "1"}).encode()) == ""


@pytest.mark.parametrize("path", ["/v1/files/file-", "/v1/batches/batch_", "/v1/files/file-\u00e9"])
def test_a_name_that_no_file_can_have_is_not_found(target: Find, path: str) -> None:
    asked = f"GET {path}{'1x' * 200} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert target("services", "batch-api").attempt(asked.encode()) == ""


# --- previews


@pytest.mark.parametrize(
    "path",
    [("type",), ("name",), ("inputs",), ("inputs", "nodesMax"), ("inputs", "nodeConfig"), ("inputs", "autoscaling"),
     ("inputs", "nodePools"), ("inputs", "values"), ("inputs", "criteria"), ("inputs", "spec"), ("inputs", "size"), ("parent",)],
    ids=".".join,
)  # fmt: skip
@pytest.mark.parametrize("value", [5, [1]], ids=str)
def test_a_program_that_registers_nonsense_is_an_error_of_its_stack(
    target: Find, path: tuple[str, ...], value: Any
) -> None:
    one = target("previews", "resources")
    for number in range(len(json.loads(one.seeds[0])["resources"])):
        assert one.attempt(changed(one.seeds[0], "resources", number, *path, to=value)) == ""


def test_a_program_that_prints_without_end_of_depth_is_not_read(target: Find) -> None:
    assert target("previews", "resources").attempt(b'{"stack": "s", "error": ' + DEEP.encode()) == ""


def test_pulumi_that_says_nonsense_is_an_error(target: Find) -> None:
    one = target("previews", "pulumi")
    for value in (
        5,
        {"op": 5, "newState": 5},
        {"op": "update", "newState": {"type": "a", "urn": "u", "parent": "a::b"}},
        [],
    ):
        assert one.attempt(changed(one.seeds[0], "steps", 0, to=value)) == ""


@pytest.mark.parametrize("amount", ["1e30", "-1e30", "1e999999", "NaN"])
def test_an_amount_beyond_all_prices_is_refused(target: Find, amount: str) -> None:
    seed = target("previews", "preview").seeds[0]
    with pytest.raises(stacks.InputError):
        preview.from_json(changed(seed, "stacks", 0, "totals", "max", "nodes_after", to=amount).decode())


def test_a_resource_that_is_neither_before_nor_after_is_no_preview(target: Find) -> None:
    found = json.loads(target("previews", "preview").seeds[0])
    found["stacks"][0]["resources"][0] |= {"before": None, "after": None}
    with pytest.raises(stacks.InputError, match="a resource is there before, after or both"):
        preview.from_json(json.dumps(found))


# --- results


@pytest.mark.parametrize("seconds", [[2**64], [2**64, 2**64 + 4096], [0.0, 1e300], [1e-300, 2e-300]])
def test_a_picture_of_moments_beyond_all_clocks_is_drawn(seconds: list[float]) -> None:
    drawn = _svg.chart(
        [_svg.Line(name="a", points=[(x, 1.0) for x in seconds], colour=1)], title="t", x_label="s", y_form=str
    )
    assert 1 <= drawn.count("<text") <= 20


def test_a_result_with_half_a_picture_is_shown() -> None:
    found = make_result(runs=1)
    (run,) = found.runs
    for series in (
        {"seconds": (1.0, 2.0)},
        {"requests_per_second": (1.0,)},
        {"seconds": (1.0,), "concurrency": (1.0, 2.0)},
    ):
        part = run.model_copy(update={"series": series, "metrics": {"e2e_p95_seconds": 1.0}})
        assert "<html" in report.html([found.model_copy(update={"runs": (part,)})] * 2)


@pytest.mark.parametrize("key", ["server", "environment", "runs", "traffic", "replicas"])
@pytest.mark.parametrize("value", [5, [5], "x", 1e300, {"a": []}], ids=str)
def test_a_result_of_another_shape_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    given = json.loads(make_result(runs=1).model_dump_json())
    (tmp_path / "r.json").write_text(json.dumps({**given, key: value}))
    release = stacks.load_release("gemma-3-4b-ollama-8", Path(__file__).resolve().parents[2])
    try:
        found = planner.read_results(tmp_path / "r.json")
    except stacks.InputError:
        return
    planner.calibrate(found, release=release)


def test_runs_without_an_offset_can_be_ordered_among_others() -> None:
    one, other = make_result(runs=2), make_result(runs=2)
    bare = [run.model_dump() | {"started": run.started.replace(tzinfo=None)} for run in other.runs]
    pooled = gate.pool([one, results.Result.model_validate(other.model_dump() | {"runs": bare})])
    assert [run.started for run in pooled.runs] == sorted(run.started for run in pooled.runs)


def test_rates_and_times_that_cannot_be_tell_nothing() -> None:
    given = json.loads(make_result(runs=2).model_dump_json())
    given["runs"][0]["metrics"] |= {"e2e_mean_seconds": 0, "requests_per_second": float("nan")}
    found = planner.from_result(given)
    assert found is not None
    assert found.e2e_mean_seconds == given["runs"][1]["metrics"]["e2e_mean_seconds"]


# --- evidence


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = make_world(tmp_path_factory.mktemp("gated"))
    found.record()
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [("verdict", 5), ("verdict", {"outcome": 5, "runs": 3}), ("result", {}), ("source", []), ("tools", None), ("earlier", "x"),
     ("attempt", None), ("signed_at", "2026-11-21T12:00:00"), ("signed_at", "soon"), ("kind", "rumour"), ("objectives", "none")],
)  # fmt: skip
def test_a_signed_statement_that_is_none_closes_the_gate(world: World, key: str, value: Any) -> None:
    keys = gate.load_keys(world.root)
    assert keys.signer is not None
    statement = json.loads(json.dumps(dict(world.entries()[0].statement)))
    statement["predicate"]["tollgate"][key] = value

    class Memory:
        location = "memory"

        def names(self) -> list[str]:
            return ["000001.json"]

        def read(self, name: str) -> bytes:
            return gate.seal(statement, keys.signer)

        def create(self, name: str, data: bytes) -> bool:
            return False

    with pytest.raises(gate.EvidenceBroken, match="not a statement of this program"):
        gate.Store(Memory(), keys).entries()


def test_runs_that_have_nothing_to_do_with_each_other_are_judged(world: World) -> None:
    """One in 10^-300 of the other: bounds that no number holds."""
    from gate import _statistics

    found = _statistics.factor_bounds([1e-300, 1e300], 0.999)
    assert 0 <= found.lower < found.mean < found.upper < float("inf")
    assert _statistics.grown(1e9) < float("inf")


# --- what is packed


def test_a_small_segment_of_a_batch_does_not_become_all_of_the_memory() -> None:
    for text in (
        b"[" * 5_000_000,
        b'[1, 200, "", 0, 0, 0, 0, 1, "e", -1]\n',
        b"[1, 200, 1, 0, 0, 0, 0, 1, 2, 99999999999]\n",
        b"{}\n",
    ):
        with pytest.raises(stacks.TollgateError, match="is damaged"):
            list(_segments.unpack(gzip.compress(text), "s"))


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", DEEP.encode()], ids=lambda text: str(text[:4]))
def test_a_secret_that_is_no_helm_release_is_named(text: bytes) -> None:
    secret = {
        "metadata": {"name": "odd"},
        "data": {"release": base64.b64encode(base64.b64encode(gzip.compress(text))).decode()},
    }
    with pytest.raises(ProviderError, match="Secret ns/odd"):
        _helm.revisions(Client(secret), "ns", "x", "mark")  # type: ignore[arg-type]


def test_a_small_helm_release_does_not_become_all_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_helm, "_MOST_BYTES", 1_000_000)
    packed = base64.b64encode(base64.b64encode(gzip.compress(b" " * 1_000_001 + b"{}"))).decode()
    with pytest.raises(ProviderError, match="more than 1000000 bytes"):
        _helm.revisions(Client({"metadata": {"name": "odd"}, "data": {"release": packed}}), "ns", "x", "mark")  # type: ignore[arg-type]


class Client:
    """An API server with one Secret."""

    def __init__(self, secret: Any) -> None:
        self.secret = secret

    def request(self, *_: object, **__: object) -> Any:
        return {"items": [self.secret]}


# --- stack files


def test_what_only_one_of_two_yaml_readers_takes_is_an_error_without_its_line(tmp_path: Path) -> None:
    (tmp_path / "stacks" / "releases").mkdir(parents=True)
    (tmp_path / "Pulumi.yaml").write_text("name: x\n")
    (tmp_path / "stacks" / "releases" / "tab.yaml").write_text("engine: ollama\nuser\t\t\ts: 50\n")
    with pytest.raises(stacks.InputError):
        stacks.load_release("tab", tmp_path)
