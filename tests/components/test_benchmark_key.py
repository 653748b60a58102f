"""A service that asks for an API key is measured with it, and the key is nowhere but in its Secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import components
import stacks
from components.platform import _against
from tests.components.recording import Recording, record

HERE = Path(__file__).resolve().parents[2]
KEY = "sk-of-this-test"


def keyed(**serving: object) -> stacks.Stack:
    stack = stacks.load_stack("staging", HERE)
    return stack.model_copy(update={"serving": stacks.Serving.model_validate({"api_key": True, **serving})})


def made(stack: stacks.Stack) -> Recording:
    """What is registered until the result is read, which a Job that never ran has not left."""
    recording = Recording()
    with pytest.raises(stacks.TollgateError, match="holds no result"):
        record(
            lambda: components.Platform("platform", components.PlatformArgs(stack=stack, root=HERE, enforce=False)),
            config={"secrets:apiKey": KEY},
            into=recording,
        )
    return recording


@pytest.mark.parametrize(("serving", "name"), [({}, "engine-keys"), ({"secret": "theirs"}, "theirs")])
def test_the_job_names_the_secret_and_holds_nothing_of_it(serving: dict[str, object], name: str) -> None:
    recording = made(keyed(**serving))
    (container,) = recording.one("Job").inputs["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [
        {"name": "TOLLGATE_API_KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "api-key"}}}
    ]
    told = [one.inputs for one in recording.of("Job") + recording.of("ConfigMap") + recording.of("Release")]
    assert len(told) >= 4
    assert KEY not in json.dumps(told)


def test_a_service_without_a_key_gives_its_job_none() -> None:
    stack = stacks.load_stack("staging", HERE)
    (container,) = made(stack).one("Job").inputs["spec"]["template"]["spec"]["containers"]
    assert "env" not in container


def test_a_baseline_whose_key_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    shutil.copy(HERE / "Pulumi.yaml", tmp_path)
    shutil.copytree(HERE / "stacks", tmp_path / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = tmp_path / "stacks" / "Pulumi.local-vllm.yaml"
    path.write_text(path.read_text() + "  tollgate:serving: {api_key: true}\n")
    text = path.read_text().splitlines()
    # Under `config`, which the file's last line is not.
    text.insert(text.index("config:") + 1, text.pop())
    path.write_text("\n".join(text) + "\n")
    stack = stacks.load_stack("local-dev", tmp_path)
    with pytest.raises(stacks.InputError, match=r"local-vllm, which asks for an API key[\s\S]*another namespace"):
        _against(stack, stacks.Benchmark(against="local-vllm"), tmp_path)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The simulator in vLLM's dialect, which asks for the key as vLLM does."""
    command = [sys.executable, "-m", "bench.simulator", "vllm", "serve", "tiny", "--host=127.0.0.1", "--port=0"]
    log = (tmp_path / "simulator.log").open("w+")
    process = subprocess.Popen(command, cwd=HERE, env={**os.environ, "VLLM_API_KEY": KEY}, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 180
        while not (said := re.search(r"on (127\.0\.0\.1:[0-9]+)", (tmp_path / "simulator.log").read_text())):
            assert process.poll() is None, (tmp_path / "simulator.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield f"http://{said[1]}"
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def test_the_job_sends_the_key_of_its_environment(service: str, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{service}/v1/models", timeout=60)
    config, result = tmp_path / "bench.json", tmp_path / "result.json"
    config.write_text(
        json.dumps(
            {
                "url": service,
                "engine": "vllm",
                "model": "tiny",
                "release": "sha256:" + "0" * 64,
                "stack": "staging",
                "traffic": {"users": 2, "prompt_tokens": 16, "output_tokens": 4},
                "runs": 1,
                "seconds": 1,
                "requests": 20,
                "ready_timeout": 120,
            }
        )
    )
    command = [sys.executable, "-m", "bench", "job", "--config", str(config), "--output", str(result)]
    bare = {key: value for key, value in os.environ.items() if key != "TOLLGATE_API_KEY"}
    refused = subprocess.run(command, cwd=HERE, env=bare, capture_output=True, text=True, timeout=240, check=False)
    assert refused.returncode != 0
    assert "give a valid API key" in refused.stdout + refused.stderr
    given = {**bare, "TOLLGATE_API_KEY": KEY}
    done = subprocess.run(command, cwd=HERE, env=given, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(result.read_text())["runs"]
    assert KEY not in result.read_text() + done.stdout + done.stderr
