from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from bench.simulator._words import count

CAPTURED_STREAM_KEYS = [
    {"id", "object", "created", "model", "choices", "prompt_token_ids", "prompt_text"},
    {"id", "object", "created", "model", "choices"},
    {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"},
]


def chat(served: Any, **body: Any) -> httpx2.Response:
    base = {"model": "tiny", "messages": [{"role": "user", "content": "have some good food"}]}
    return httpx2.post(served.url + "/v1/chat/completions", json=base | body, timeout=20)


def events(response: httpx2.Response) -> list[Any]:
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_has_the_events_of_the_real_one(vllm: Any) -> None:
    found = events(chat(vllm, max_tokens=5, ignore_eos=True, stream=True, stream_options={"include_usage": True}))
    assert len(found) == 7
    assert set(found[0]) == CAPTURED_STREAM_KEYS[0]
    assert found[0]["choices"][0] == {
        "index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    assert all(set(one) == CAPTURED_STREAM_KEYS[1] for one in found[1:6])
    assert set(found[5]["choices"][0]) == {"index", "delta", "logprobs", "finish_reason", "stop_reason", "token_ids"}
    assert found[5]["choices"][0]["finish_reason"] == "length"
    assert set(found[6]) == CAPTURED_STREAM_KEYS[2]
    assert found[6]["usage"] == {"prompt_tokens": 4, "total_tokens": 9, "completion_tokens": 5}
    assert found[6]["choices"] == []


def test_exactly_max_tokens_come_with_ignore_eos(vllm: Any) -> None:
    for wanted in (1, 2, 63, 700):
        body = chat(vllm, max_tokens=wanted, ignore_eos=True).json()
        assert body["usage"]["completion_tokens"] == wanted
        assert len(body["choices"][0]["message"]["content"].split()) == wanted


@pytest.mark.parametrize(
    ("body", "status", "message", "kind", "param"),
    [
        ({"max_tokens": 999999}, 400, "max_tokens=999999 cannot be greater than max_model_len=2048. Please request fewer "
         "output tokens. (parameter=max_tokens, value=999999)", "BadRequestError", "max_tokens"),
        ({"model": "nope"}, 404, "The model `nope` does not exist. Valid aliases: tiny.", "NotFoundError", "model"),
        ({"n": 0}, 400, None, "BadRequestError", "n"),
        ({"temperature": -1}, 400, None, "BadRequestError", "temperature"),
        ({"messages": "x"}, 400, None, "Bad Request", "body.messages"),
        ({"max_tokens": "many"}, 400, None, "Bad Request", "body.max_tokens"),
        ({"top_logprobs": 3}, 400, None, "Bad Request", "top_logprobs"),
    ],
)  # fmt: skip
def test_errors_have_the_shape_and_words_of_the_real_one(
    vllm: Any, body: dict[str, Any], status: int, message: str | None, kind: str, param: str
) -> None:
    response = chat(vllm, **body)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (kind, param, status)
    if message is not None:
        assert error["message"] == message


def test_broken_json_is_answered_as_the_real_one_does(vllm: Any) -> None:
    headers = {"content-type": "application/json"}
    response = httpx2.post(vllm.url + "/v1/chat/completions", content=b'{"model":', headers=headers)
    assert response.json() == {
        "error": {
            "message": "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.9', 'msg': 'JSON decode error', "
            "'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}",
            "type": "Bad Request",
            "param": "body.9",
            "code": 400,
        }
    }


def test_the_official_client_streams_and_counts(vllm: Any) -> None:
    client = openai.OpenAI(base_url=vllm.url + "/v1", api_key="none", max_retries=0)
    assert client.models.list().data[0].id == "tiny"
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    parts = list(stream)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert len(text.split()) == 8
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 8
    done = client.completions.create(model="tiny", prompt=["a b c", "d e"], max_tokens=4, n=2)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    made = client.embeddings.create(model="tiny", input=["one", "two", "one"], dimensions=64)
    assert len(made.data[0].embedding) == 64
    assert made.data[0].embedding == made.data[2].embedding != made.data[1].embedding


def test_the_official_client_gets_tools_schemas_and_logprobs(vllm: Any) -> None:
    client = openai.OpenAI(base_url=vllm.url + "/v1", api_key="none", max_retries=0)
    parameters = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    messages: Any = [{"role": "user", "content": "weather?"}]
    done = client.chat.completions.create(model="tiny", messages=messages, tools=[tool], max_tokens=64)
    assert done.choices[0].finish_reason == "tool_calls"
    calls = done.choices[0].message.tool_calls or []
    assert isinstance(json.loads(calls[0].function.arguments)["city"], str)  # type: ignore[union-attr]
    streamed = client.chat.completions.create(
        model="tiny", messages=messages, tools=[tool], tool_choice="required", max_tokens=64, stream=True
    )
    text = "".join(
        call.function.arguments or ""
        for part in streamed
        for call in (part.choices[0].delta.tool_calls or [])
        if call.function
    )
    assert isinstance(json.loads(text)["city"], str)
    schema = {
        "type": "object", "required": ["kind", "size", "tags"],
        "properties": {"kind": {"enum": ["a", "b"]}, "size": {"type": "integer", "minimum": 7}, "tags": {
            "type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2}},
        "$defs": {"tag": {"type": "string", "minLength": 9}},
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = client.chat.completions.create(model="tiny", messages=messages, response_format=form, max_tokens=200)
    value = json.loads(made.choices[0].message.content or "")
    assert value["kind"] in ("a", "b")
    assert value["size"] >= 7
    assert len(value["tags"]) == 2
    assert all(len(tag) >= 9 for tag in value["tags"])
    scored = client.chat.completions.create(
        model="tiny", messages=messages, logprobs=True, top_logprobs=2, max_tokens=3
    )
    assert scored.choices[0].logprobs is not None
    content = scored.choices[0].logprobs.content or []
    assert [len(one.top_logprobs) for one in content] == [2, 2, 2]
    assert "".join(one.token for one in content) == scored.choices[0].message.content


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        ({"choice": ["yes", "no"]}, r"yes|no"),
        ({"regex": r"[A-Z]{2}\d{3}"}, r"[A-Z]{2}\d{3}"),
        ({"json": {"type": "object", "required": ["a"], "properties": {"a": {"const": 7}}}}, r'\{"a":7\}'),
        ({"json": '{"const": "x"}'}, r'"x"'),
        ({"json_object": True}, r"\{.*\}"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_structured_outputs_are_what_they_have_to_be(vllm: Any, constraint: Any, fits: str, stream: bool) -> None:
    response = chat(vllm, structured_outputs=constraint, stream=stream)
    if stream:
        said = "".join(one["choices"][0]["delta"].get("content") or "" for one in events(response))
    else:
        said = response.json()["choices"][0]["message"]["content"]
    assert re.fullmatch(fits, said), said
    assert chat(vllm, structured_outputs={"choice": ["a"], "regex": "b"}).status_code == 400
    assert chat(vllm, structured_outputs={"grammar": "root ::= x"}).status_code == 400


def test_a_stop_string_ends_the_answer_before_it(vllm: Any) -> None:
    text = chat(vllm, max_tokens=400, ignore_eos=True).json()["choices"][0]["message"]["content"]
    words = sorted(set(text.split()))[:60]
    body = chat(vllm, max_tokens=400, ignore_eos=True, stop=words).json()
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] in words
    assert not any(word in choice["message"]["content"] for word in words)
    assert body["usage"]["completion_tokens"] < 400


def test_several_choices_stream_side_by_side(vllm: Any) -> None:
    found = events(chat(vllm, max_tokens=4, ignore_eos=True, n=3, stream=True))
    indexes = [one["choices"][0]["index"] for one in found if one["choices"][0]["delta"].get("content")]
    assert sorted(indexes) == [0] * 4 + [1] * 4 + [2] * 4


def test_metrics_have_the_names_and_labels_of_the_real_scrape(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--max-model-len", "2048", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0")
    for _ in range(3):
        chat(served, max_tokens=5, ignore_eos=True)
    events(chat(served, max_tokens=5, ignore_eos=True, stream=True))
    text = httpx2.get(served.url + "/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    own = '{engine="0",model_name="tiny"}'
    assert values[f"vllm:generation_tokens_total{own}"] == 20
    assert values[f"vllm:prompt_tokens_total{own}"] == 16
    assert values['vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"}'] == 4
    assert values[f"vllm:inter_token_latency_seconds_count{own}"] == 16
    assert values[f"vllm:time_to_first_token_seconds_count{own}"] == 4
    assert values[f"vllm:num_requests_running{own}"] == 0
    # Each series by name and labels, histograms with their bounds, as the real one showed them for this context.
    captured = (Path(__file__).parent / "vllm-0.32.0-series.txt").read_text().splitlines()
    wanted = {name: bounds for name, _, bounds in (line.partition(" ") for line in captured)}
    series: dict[str, list[str]] = {}
    for key in values:
        bound = re.search(r'le="([^"]*)"', key)
        series.setdefault(re.sub(r'="[^"]*"', "", key), []).extend([bound[1]] if bound else [])
    assert {name: ",".join(dict.fromkeys(bounds)) for name, bounds in series.items()} == wanted


def test_prompts_are_counted_by_words_or_by_characters() -> None:
    assert count("have some good food") == 4
    assert count(" ".join(["able"] * 500)) == 500
    assert count("Is this prose? It is, I think.") == 8
    assert count("") == 0


def test_tokenize_agrees_with_usage(vllm: Any) -> None:
    prompt = "What, then, is a token?"
    told = httpx2.post(vllm.url + "/tokenize", json={"model": "tiny", "prompt": prompt}).json()
    used = httpx2.post(vllm.url + "/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 1}).json()
    assert told["count"] == used["usage"]["prompt_tokens"] == len(told["tokens"])
    assert told["max_model_len"] == 2048


def test_an_api_key_is_asked_for(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--api-key", "secret")
    assert httpx2.get(served.url + "/v1/models").status_code == 401
    assert httpx2.get(served.url + "/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert httpx2.get(served.url + "/health").status_code == 200


def test_the_same_seed_says_the_same(serve: Callable[..., Any]) -> None:
    said = []
    for seed in ("7", "7", "8"):
        served = serve("vllm", "tiny", TOLLGATE_SIM_SEED=seed, TOLLGATE_SIM_SPEED="1000")
        said.append([chat(served).json()["choices"][0]["message"]["content"] for _ in range(3)])
        served.stop()
    assert said[0] == said[1] != said[2]
