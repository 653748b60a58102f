"""The official client against our Batch API: upload, create, wait, download; and what is wrong is said as OpenAI says it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from bench import batch


@pytest.fixture
def endpoint(serve: Callable[..., Any]) -> Any:
    return serve(delay=0.005)


@pytest.fixture
def service(endpoint: Any, tmp_path: Path) -> Iterator[batch.Service]:
    settings = batch.RunSettings(tries=2, timeout=60, grace=30)
    with batch.Service(tmp_path / "s", [batch.EndpointSettings(url=endpoint.url)], settings, key="sesame") as found:
        yield found


@pytest.fixture
def client(service: batch.Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="sesame", max_retries=0, timeout=60) as found:
        yield found


def line(custom_id: str, prompt: str, url: str = "/v1/chat/completions") -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def ended(client: openai.OpenAI, id: str) -> Any:
    end = time.monotonic() + 180
    while True:
        found = client.batches.retrieve(id)
        if found.status in ("completed", "failed", "expired", "cancelled"):
            return found
        assert found.status in ("validating", "in_progress", "finalizing", "cancelling")
        assert time.monotonic() < end, found
        time.sleep(0.05)


def upload(client: openai.OpenAI, text: str) -> str:
    return client.files.create(file=("in.jsonl", io.BytesIO(text.encode())), purpose="batch").id


def test_the_official_client_gets_its_results(client: openai.OpenAI) -> None:
    # Bytes that look like the beginning of a mark within the upload, and more of it than one read.
    prompts = [f"p{i} \r\n--{'-' * 30} é" for i in range(300)]
    prompts[7], prompts[8] = "poison", "refuse"
    text = "".join(line(f"r{i}", prompt) for i, prompt in enumerate(prompts))
    file = client.files.create(file=("in.jsonl", io.BytesIO(text.encode())), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(text.encode()), "in.jsonl", "batch")
    assert client.files.content(file.id).content == text.encode()
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"who": "me"}
    )
    assert made.status in ("validating", "in_progress")
    found = ended(client, made.id)
    assert found.status == "completed"
    assert (found.request_counts.total, found.request_counts.completed, found.request_counts.failed) == (300, 298, 2)
    assert found.usage.input_tokens == 2980
    assert found.metadata == {"who": "me"}
    assert found.created_at <= found.in_progress_at <= found.completed_at < found.expires_at
    good = [json.loads(row) for row in client.files.content(found.output_file_id).text.splitlines()]
    bad = [json.loads(row) for row in client.files.content(found.error_file_id).text.splitlines()]
    assert [row["custom_id"] for row in good] == [f"r{i}" for i in range(300) if i not in (7, 8)]
    assert good[0]["response"]["body"]["choices"][0]["message"]["content"] == f"re: {prompts[0]}"
    assert [(row["custom_id"], row["response"]["status_code"]) for row in bad] == [("r7", 500), ("r8", 400)]
    assert [one.id for one in client.batches.list()] == [made.id]
    assert {one.purpose for one in client.files.list()} == {"batch", "batch_output"}


def test_a_batch_can_be_cancelled_and_keeps_what_was_answered(client: openai.OpenAI, endpoint: Any) -> None:
    endpoint.control(delay=0.1)
    file = upload(client, "".join(line(f"r{i}", f"p{i}") for i in range(3000)))
    made = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    while client.batches.retrieve(made.id).request_counts.completed < 5:
        time.sleep(0.05)
    assert client.batches.cancel(made.id).status == "cancelling"
    found = ended(client, made.id)
    assert found.status == "cancelled"
    rows = client.files.content(found.output_file_id).text.splitlines()
    assert 5 <= len(rows) == found.request_counts.completed < 3000
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)


def test_a_window_that_closes_lists_what_was_not_answered(client: openai.OpenAI, endpoint: Any) -> None:
    endpoint.control(delay=0.1)
    file = upload(client, "".join(line(f"r{i}", f"p{i}") for i in range(2000)))
    made = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="2s")  # type: ignore[arg-type]
    found = ended(client, made.id)
    assert found.status == "expired"
    # Of an engine that has had no time to answer there is none.
    good = client.files.content(found.output_file_id).text.splitlines() if found.output_file_id else []
    bad = [json.loads(row) for row in client.files.content(found.error_file_id).text.splitlines()]
    assert len(good) + len(bad) == 2000
    assert {row["error"]["code"] for row in bad} == {"batch_expired"}


def test_a_file_that_is_no_batch_fails_validation_with_its_line(client: openai.OpenAI) -> None:
    for text, says in (
        (line("a", "x") + "nonsense\n", "not JSON"),
        (line("a", "x") + line("b", "x", "/v1/completions"), "url /v1/completions in b"),
        (line("a", "x") + line("a", "y"), "'a' in requests 1 and 2"),
        ("", "no requests"),
    ):
        made = client.batches.create(
            input_file_id=upload(client, text), endpoint="/v1/chat/completions", completion_window="24h"
        )
        found = ended(client, made.id)
        assert found.status == "failed"
        assert found.errors is not None
        assert says in str(found.errors.data[0].message)
        assert found.errors.data[0].line in (2, None)


def test_batches_go_on_after_a_restart(endpoint: Any, tmp_path: Path) -> None:
    endpoint.control(delay=0.05)
    given = tmp_path / "s", [batch.EndpointSettings(url=endpoint.url)], batch.RunSettings(grace=30)
    with batch.Service(*given) as service, openai.OpenAI(base_url=f"{service.url}/v1", api_key="x") as client:
        file = upload(client, "".join(line(f"r{i}", f"p{i}") for i in range(400)))
        made = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
        while client.batches.retrieve(made.id).request_counts.completed < 10:
            time.sleep(0.05)
    endpoint.control(delay=0.001)
    with batch.Service(*given) as service, openai.OpenAI(base_url=f"{service.url}/v1", api_key="x") as client:
        assert ended(client, made.id).request_counts.completed == 400
    assert set(endpoint.asked().values()) == {1}


def test_what_is_wrong_is_said_as_openai_says_it(client: openai.OpenAI, service: batch.Service) -> None:
    with pytest.raises(openai.NotFoundError, match="No such File"):
        client.files.retrieve("file-nothing")
    with pytest.raises(openai.NotFoundError, match="No such File"):
        client.files.retrieve("file-..%2f..%2fetc%2fpasswd")
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        client.batches.retrieve("batch_nothing")
    with pytest.raises(openai.NotFoundError):
        client.models.list()
    with pytest.raises(openai.BadRequestError, match="purpose must be batch"):
        client.files.create(file=("x", b"x"), purpose="assistants")
    file = upload(client, line("a", "x"))
    for wrong in ({"endpoint": "/v1/images"}, {"completion_window": "soon"}):
        given = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h", **wrong}
        with pytest.raises(openai.BadRequestError):
            client.batches.create(**given)  # type: ignore[arg-type]
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{service.url}/v1", api_key="no") as other:
        other.files.list()
    assert client.files.delete(file).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file)


def test_uploads_that_are_broken_are_refused_and_leave_nothing(service: batch.Service, tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer sesame"}
    kind = "multipart/form-data; boundary=B"
    part = '--B\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    file = part.format("file", '; filename="f"', "x")
    for content_type, body in (
        ("text/plain", "x"),
        (kind, "x" * 40_000),
        (kind, file),
        (kind, "--B\r\n" + "y" * 40_000),
        (kind, file + "--B--\r\n"),
        (kind, part.format("purpose", "", "batch") + "--B--\r\n"),
    ):
        reply = httpx2.post(
            f"{service.url}/v1/files",
            content=body.encode(),
            headers={**headers, "Content-Type": content_type},
            timeout=60,
        )
        assert reply.status_code == 400, (content_type, body[:50], reply.text)
        assert reply.json()["error"]["type"] == "invalid_request_error"
    assert list((tmp_path / "s" / "files").iterdir()) == []
    good = file + part.format("purpose", "", "batch") + "--B--\r\n"
    reply = httpx2.post(
        f"{service.url}/v1/files", content=good.encode(), headers={**headers, "Content-Type": kind}, timeout=60
    )
    assert (reply.status_code, reply.json()["bytes"]) == (200, 1)
