from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import ollama as official
import openai
import pytest

from tests.ports import free_port


def test_a_model_must_be_pulled_first_and_its_progress_ends_in_success(ollama: Any) -> None:
    client = official.Client(host=ollama.url)
    with pytest.raises(official.ResponseError, match=r"model 'tinyllama:1\.1b' not found") as caught:
        client.chat(model="tinyllama:1.1b", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.status_code == 404
    steps = [part.status for part in client.pull("tinyllama:1.1b", stream=True)]
    assert steps[0] == "pulling manifest"
    assert steps[-1] == "success"
    assert "tinyllama:1.1b" in [model.model for model in client.list().models]
    client.delete("tinyllama:1.1b")
    assert "tinyllama:1.1b" not in [model.model for model in client.list().models]


def test_the_official_client_generates_and_chats(ollama: Any) -> None:
    client = official.Client(host=ollama.url)
    done = client.generate(model="gemma3:4b", prompt="have some good food", options={"num_predict": 12})
    assert (done.eval_count, done.prompt_eval_count, done.done, done.done_reason) == (12, 4, True, "length")
    assert len((done.response or "").split()) == 12
    assert (done.total_duration or 0) >= (done.eval_duration or 0) > 0
    parts = list(
        client.chat(
            model="gemma3:4b", messages=[{"role": "user", "content": "hi"}], options={"num_predict": 9}, stream=True
        )
    )
    assert len(parts) == 10
    assert [part.done for part in parts] == [False] * 9 + [True]
    assert parts[-1].eval_count == 9
    assert client.show("gemma3:4b").details is not None
    vectors = client.embed(model="gemma3:4b", input=["a", "b"]).embeddings
    assert len(vectors) == 2
    running = client.ps().models
    assert [model.model for model in running] == ["gemma3:4b"]


def test_tools_and_formats_come_back_as_objects(ollama: Any) -> None:
    client = official.Client(host=ollama.url)
    tool: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
        "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}  # fmt: skip
    done = client.chat(model="gemma3:4b", messages=[{"role": "user", "content": "?"}], tools=[tool])
    calls = done.message.tool_calls or []
    assert calls[0].function.name == "weather"
    assert isinstance(calls[0].function.arguments["city"], str)
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    made = client.chat(model="gemma3:4b", messages=[{"role": "user", "content": "?"}], format=schema)
    assert isinstance(json.loads(made.message.content or "")["n"], int)


def test_the_openai_routes_serve_the_openai_client(ollama: Any) -> None:
    client = openai.OpenAI(base_url=ollama.url + "/v1", api_key="ollama", max_retries=0)
    assert [model.id for model in client.models.list().data] == ["gemma3:4b"]
    messages: Any = [{"role": "user", "content": "hi"}]
    done = client.chat.completions.create(model="gemma3:4b", messages=messages, max_tokens=7)
    assert done.usage is not None
    assert done.usage.completion_tokens == 7
    parts = list(client.chat.completions.create(model="gemma3:4b", messages=messages, max_tokens=7, stream=True))
    assert sum(bool(part.choices[0].delta.content) for part in parts) == 7
    assert parts[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        client.chat.completions.create(model="nope", messages=messages)


def test_the_first_request_pays_for_loading_and_keep_alive_decides_when_again(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    served = serve("ollama", TOLLGATE_SIM_LOAD_SECONDS="0.3", TOLLGATE_SIM_MODELS="gemma3:4b", TOLLGATE_SIM_TTFT="1ms")
    client = official.Client(host=served.url)
    start = time.monotonic()
    assert client.generate(model="gemma3:4b", prompt="").done_reason == "load"
    assert time.monotonic() - start >= 0.3
    assert (client.generate(model="gemma3:4b", prompt="x", options={"num_predict": 1}).load_duration or 0) < 0.25e9
    assert client.generate(model="gemma3:4b", prompt="", keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    client.generate(model="gemma3:4b", prompt="x", options={"num_predict": 1}, keep_alive="2s")
    assert len(client.ps().models) == 1
    eventually(lambda: client.ps().models == [])
    client.generate(model="gemma3:4b", prompt="x", options={"num_predict": 1}, keep_alive=-1)
    assert "2318" in httpx2.get(served.url + "/api/ps").json()["models"][0]["expires_at"]


def test_a_full_queue_is_answered_in_ollamas_words(
    serve: Callable[..., Any], hold: Callable[..., None], eventually: Callable[..., None]
) -> None:
    port = free_port()
    served = serve(
        "ollama", OLLAMA_NUM_PARALLEL="1", OLLAMA_MAX_QUEUE="2", TOLLGATE_SIM_MODELS="gemma3:4b",
        TOLLGATE_SIM_LOAD_SECONDS="0", TOLLGATE_SIM_TTFT="60s", TOLLGATE_SIM_METRICS_PORT=str(port),
    )  # fmt: skip
    httpx2.post(served.url + "/api/generate", json={"model": "gemma3:4b"})
    body = b'{"model":"gemma3:4b","prompt":"x","stream":false}'
    for _ in range(3):
        hold(served, "/api/generate", body)
    waiting = 'ollama:num_requests_waiting{engine="0",model_name="gemma3:4b"} 2.0'
    eventually(lambda: waiting in httpx2.get(f"http://127.0.0.1:{port}/metrics").text)
    refused = httpx2.post(served.url + "/api/generate", content=body)
    assert refused.status_code == 503
    assert refused.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/chat", b"", 400, "missing request body"),
        ("/api/chat", b"{}", 400, "model is required"),
        ("/api/generate", b'{"model":"nope"}', 404, "model 'nope' not found"),
        (
            "/api/generate",
            b'{"model":"gemma3:4b","options":{"num_predict":"x"}}',
            400,
            'option "num_predict" must be of type integer',
        ),
        ("/api/generate", b'{"model":', 400, "unexpected EOF"),
    ],
)
def test_bad_requests_are_refused_in_ollamas_words(
    ollama: Any, path: str, body: bytes, status: int, error: str
) -> None:
    response = httpx2.post(ollama.url + path, content=body)
    assert (response.status_code, response.json()) == (status, {"error": error})


def test_unknown_routes_and_methods_are_answered_as_the_router_does(ollama: Any) -> None:
    assert httpx2.get(ollama.url + "/nothing").text == "404 page not found"
    assert httpx2.get(ollama.url + "/api/chat").status_code == 405
    assert httpx2.head(ollama.url + "/").status_code == 200
    assert httpx2.get(ollama.url + "/").text == "Ollama is running"


def test_metrics_of_the_ollama_dialect_are_on_a_port_of_their_own(serve: Callable[..., Any]) -> None:
    port = free_port()
    served = serve(
        "ollama", TOLLGATE_SIM_MODELS="gemma3:4b", TOLLGATE_SIM_LOAD_SECONDS="0", TOLLGATE_SIM_TTFT="1ms",
        TOLLGATE_SIM_METRICS_PORT=str(port),
    )  # fmt: skip
    assert httpx2.get(served.url + "/metrics").status_code == 404
    body = {"model": "gemma3:4b", "prompt": "a b c", "stream": False, "options": {"num_predict": 5}}
    assert httpx2.post(served.url + "/api/generate", json=body).json()["eval_count"] == 5
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'ollama:generation_tokens_total{engine="0",model_name="gemma3:4b"} 5.0' in text
    assert 'ollama:num_requests_waiting{engine="0",model_name="gemma3:4b"} 0.0' in text


def test_an_api_key_is_asked_for_where_one_is_set(serve: Callable[..., Any]) -> None:
    served = serve("ollama", TOLLGATE_SIM_MODELS="gemma3:4b", TOLLGATE_SIM_API_KEY="secret")
    assert httpx2.get(served.url + "/").status_code == 200
    refused = httpx2.get(served.url + "/api/tags")
    assert (refused.status_code, refused.json()) == (401, {"error": "unauthorized"})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=served.url + "/v1", api_key="wrong", max_retries=0).models.list()
    client = official.Client(host=served.url, headers={"Authorization": "Bearer secret"})
    assert len(client.list().models) == 1


def test_faults_come_to_native_routes_too(serve: Callable[..., Any]) -> None:
    served = serve(
        "ollama", TOLLGATE_SIM_MODELS="gemma3:4b", TOLLGATE_SIM_LOAD_SECONDS="0", TOLLGATE_SIM_TTFT="0",
        TOLLGATE_SIM_ITL="0", TOLLGATE_SIM_FAULTS="error=0.3,disconnect=0.3",
    )  # fmt: skip
    seen = {200: 0, 500: 0, 0: 0}
    with httpx2.Client(base_url=served.url) as client:
        for _ in range(200):
            body = {"model": "gemma3:4b", "prompt": "x", "options": {"num_predict": 8}}
            try:
                seen[client.post("/api/generate", json=body).status_code] += 1
            except httpx2.HTTPError:
                seen[0] += 1
    assert 40 <= seen[500] <= 80
    assert 25 <= seen[0] <= 60
