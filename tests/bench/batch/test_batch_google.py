"""A batch in Google Cloud Storage, as far as a stand-in of it goes: inputs, shards, checkpoints and results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import batch
from bench.batch import _objects
from tests.google_storage import google_storage, use_account

ROWS = 3000
QUERY = "?disableSSL=true"


def test_a_batch_is_read_kept_and_written_in_a_google_bucket(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"prompt {number} " + "x" * 900 for number in range(ROWS)]
    with google_storage() as google:
        use_account(tmp_path, monkeypatch, google.server_port)
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()
        assert len(rows) > 2 << 20, "must be more than one range of reading"
        google.write("prompts/in.jsonl", rows, None)
        store = f"gs://prompts/queue{QUERY}"
        inputs = batch.read(f"gs://prompts/in.jsonl{QUERY}", batch.Recipe(model="m"))
        queue = batch.create(store, inputs, id="night", shards=2)
        settings = [batch.EndpointSettings(url=serve().url, slots=32)]
        ended = [batch.run(batch.open_queue(store, "night"), settings, signals=False) for _ in range(2)]
        assert ended[-1].state == "done"
        assert batch.open_queue(store, "night").counts().ok == ROWS
        batch.write(queue, f"gs://prompts/out.jsonl{QUERY}", f"gs://prompts/errors.jsonl{QUERY}")
        lines = [json.loads(line) for line in google.objects["prompts/out.jsonl"][1].splitlines()]
        answers = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
        assert answers == [f"re: {text}" for text in texts]
        assert google.objects["prompts/errors.jsonl"][1] == b""
        assert batch.ids(store) == ["night"]
        batch.remove(store, "night")
        assert sorted(google.objects) == ["prompts/errors.jsonl", "prompts/in.jsonl", "prompts/out.jsonl"]


def test_what_is_created_in_a_google_bucket_is_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with google_storage() as google:
        use_account(tmp_path, monkeypatch, google.server_port)
        objects = _objects.Objects(f"gs://prompts/queue{QUERY}")
        assert objects.create("lease", b"mine")
        assert not objects.create("lease", b"theirs")
        assert objects.get("lease") == b"mine"
        for number in range(1005):
            google.write(f"prompts/queue/parts/{number:04d}", b"xy", None)
        assert objects.sizes("parts/") == {f"{number:04d}": 2 for number in range(1005)}
        assert objects.folders() == ["parts"]
