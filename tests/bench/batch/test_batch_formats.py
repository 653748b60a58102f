"""What goes in: OpenAI's Batch format, plain rows with a template, files on disks and in buckets; and what is no request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench import batch

CHAT = "/v1/chat/completions"


def found(path: Path | str, recipe: batch.Recipe | None = None, **given: Any) -> list[tuple[str, str, Any]]:
    rows = []
    for row in batch.read(str(path), recipe or batch.Recipe(model="m"), **given):
        rows.append(
            (row.custom_id, row.path, json.loads(row.body)) if isinstance(row, batch.Input) else ("bad", "", str(row))
        )
    return rows


def test_requests_in_openais_format_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    body = {"model": "gpt", "messages": [{"role": "user", "content": "hé"}], "max_tokens": 7}
    lines = [
        {"custom_id": "a", "method": "POST", "url": CHAT, "body": body},
        {"custom_id": "b", "method": "POST", "url": "/v1/embeddings", "body": {"model": "e", "input": "x"}},
        {"custom_id": "c", "url": "/api/generate", "body": {"model": "e", "prompt": "x"}},
        {"custom_id": "d", "url": CHAT, "body": {**body, "stream": True, "stream_options": {"include_usage": True}}},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert found(path, batch.Recipe()) == [
        ("a", CHAT, body),
        ("b", "/v1/embeddings", {"model": "e", "input": "x"}),
        # Ollama would stream if it were not told otherwise; nobody watches a batch.
        ("c", "/api/generate", {"model": "e", "prompt": "x", "stream": False}),
        ("d", CHAT, body),
    ]
    assert found(path, batch.Recipe(model="other", extra={"max_tokens": 3}))[0][2] == {
        **body,
        "model": "other",
        "max_tokens": 3,
    }


def test_rows_with_a_template_become_requests(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffid,text,lang\n7,"a ""b""\nc",de\n8,,fr\n', encoding="utf-8")
    recipe = batch.Recipe(model="m", template="{{{lang}}}: {text}", system="Speak {lang}", id_column="id")
    assert [(row[0], row[1]) for row in found(path, recipe)] == [("7", CHAT), ("8", CHAT)]
    first, second = (row[2] for row in found(path, recipe))
    system = {"role": "system", "content": "Speak de"}
    assert first == {"messages": [system, {"role": "user", "content": '{de}: a "b"\nc'}], "model": "m"}
    assert second["messages"][1]["content"] == "{fr}: "


def test_parquet_is_read_with_its_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    import pyarrow.parquet as parquet

    parquet.write_table(
        pa.table({"n": list(range(1500)), "text": [None if i == 3 else f"t{i}" for i in range(1500)]}),
        path,
        row_group_size=400,
    )
    rows = found(path, batch.Recipe(model="m", template="{n}={text}"))
    assert len(rows) == 1500
    assert [rows[i][2]["messages"][0]["content"] for i in (0, 3, 1499)] == ["0=t0", "3=", "1499=t1499"]
    assert rows[1499][0] == "row-1500"


def test_plain_prompts_need_no_template(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    chat = {"custom_id": "x", "messages": [{"role": "user", "content": "m"}], "temperature": 0}
    path.write_text('{"prompt": "p"}\n"text"\n' + json.dumps(chat) + '\n{"q": "only"}\n')
    assert [row[0] for row in found(path)] == ["row-1", "row-2", "x", "row-4"]
    assert [row[2]["messages"][0]["content"] for row in found(path)] == ["p", "text", "m", "only"]
    assert found(path)[2][2]["temperature"] == 0
    assert found(path, batch.Recipe(model="m", path="/v1/completions"))[0][2] == {"prompt": "p", "model": "m"}
    assert found(path, batch.Recipe(model="m", path="/v1/embeddings"))[0][2] == {"input": "p", "model": "m"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"custom_id": "a", "url": "/v1/images", "body": {"model": "m"}}', "url '/v1/images'"),
        ('{"url": "/v1/completions", "body": {"model": "m"}}', "custom_id"),
        ('{"custom_id": 7, "body": {"model": "m"}}', "custom_id '7'"),
        ('{"custom_id": "a", "method": "GET", "body": {}}', "method 'GET'"),
        ('{"a": "x", "b": "y"}', "columns a, b"),
        ('{"prompt": ""}', "prompt is str ''"),
        ('{"prompt": "x"', "the file ends in the middle of it"),
        ("[1]", "a JSON list"),
        ("nonsense", "not JSON"),
    ],
)
def test_what_is_no_request_is_named_with_its_line(tmp_path: Path, store: str, line: str, says: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "good"}\n' + line)
    with pytest.raises(stacks.InputError) as error:
        batch.create(store, batch.read(str(path), batch.Recipe(model="m")), source="in.jsonl")
    assert error.value.where == "in.jsonl, line 2"
    assert says in error.value.got
    assert batch.ids(store) == []


def test_bad_rows_may_be_listed_as_failures_instead(tmp_path: Path, store: str, serve: Any, outputs: Any) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "one"}\nnonsense\n{"prompt": "two"}\n')
    queue = batch.create(store, batch.read(str(path), batch.Recipe(model="m")), skip_bad=True)
    endpoint = batch.EndpointSettings(url=serve().url)
    assert batch.run(queue, [endpoint], signals=False).counts == batch.Counts(
        total=3, ok=2, failed=1, tokens_in=20, tokens_out=10
    )
    good, bad = outputs(queue)
    assert [line["custom_id"] for line in good] == ["row-1", "row-3"]
    assert (bad[0]["custom_id"], bad[0]["error"]["code"], bad[0]["response"]) == ("line-2", "bad_row", None)
    assert "not JSON" in bad[0]["error"]["message"]


def test_a_custom_id_twice_is_refused_with_both_places(store: str) -> None:
    rows = [batch.Input(name, CHAT, b"{}") for name in ("a", "b", "c", "b")]
    with pytest.raises(stacks.InputError, match="'b' in requests 2 and 4"):
        batch.create(store, rows)
    assert batch.ids(store) == []


@pytest.mark.parametrize(
    ("name", "content", "recipe", "says"),
    [
        ("in.jsonl", "", {}, "no requests"),
        ("in.txt", "x", {}, "a name that does not tell its format"),
        ("in.csv", 'a,b\n"x\n', {}, "unexpected end of data"),
        ("in.csv", "a,b\n1\n", {"template": "{a}"}, "another number of fields"),
        ("in.csv", "a\n1\n", {"template": "{c}"}, "--template names 'c'"),
        ("in.csv", "a\n1\n", {"template": "{a!r}"}, "{a!r}"),
        ("in.csv", "a\n1\n", {"template": "{}"}, "{}"),
        ("in.csv", "a\n1\n", {"template": "{a"}, "expected '}'"),
        ("in.csv", "a\n1\n", {"template": "{a.__class__}"}, "--template names 'a.__class__'"),
        ("in.parquet", "no parquet", {}, "Parquet"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    tmp_path: Path, store: str, name: str, content: str, recipe: dict[str, str], says: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(stacks.InputError) as error:
        batch.create(store, batch.read(str(path), batch.Recipe(model="m", **recipe)))
    assert says in str(error.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_inputs_and_results_may_lie_in_a_bucket(
    tmp_path: Path, store: str, serve: Any, bucket: tuple[Any, str], kind: str
) -> None:
    client, query = bucket
    path = tmp_path / f"in.{kind}"
    texts = [f"p{i} {'x' * 2000}" for i in range(1200)]
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pa.table({"prompt": texts}), path)
    elif kind == "csv":
        path.write_text("prompt\n" + "\n".join(texts) + "\n")
    else:
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    assert kind == "parquet" or path.stat().st_size > 2 << 20, "must be more than one range of reading"
    client.upload_file(str(path), "prompts", f"deep/in.{kind}")
    queue = batch.create(store, batch.read(f"s3://prompts/deep/in.{kind}{query}", batch.Recipe(model="m")))
    assert batch.run(queue, [batch.EndpointSettings(url=serve().url, slots=32)], signals=False).counts.ok == 1200
    batch.write(queue, f"s3://prompts/out/{kind}.jsonl{query}", f"s3://prompts/out/{kind}-errors.jsonl{query}")
    lines = client.get_object(Bucket="prompts", Key=f"out/{kind}.jsonl")["Body"].read().splitlines()
    answers = [json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    assert answers == [f"re: {text}" for text in texts]
    assert client.get_object(Bucket="prompts", Key=f"out/{kind}-errors.jsonl")["Body"].read() == b""


def test_a_bucket_that_cannot_be_reached_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(stacks.TollgateError, match="cannot be read"):
        found("s3://prompts/in.jsonl?endpoint=127.0.0.1:1&disableSSL=true&region=us-east-1")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"

    def half() -> None:
        with batch.writing(str(path)) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(path.parent.iterdir()) == []
    with batch.writing(str(path)) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]
