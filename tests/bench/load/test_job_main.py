"""The benchmark Job's process: what it reads, what it leaves, how it ends."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import bench.job._kube as kube
import stacks
from bench import job
from bench.results import Result

Serve = Callable[..., str]
ROOT = Path(stacks.__file__).parents[1]


class Api(http.server.BaseHTTPRequestHandler):
    """As much of an API server as the Job uses."""

    maps: ClassVar[dict[str, Any]] = {}
    seen: ClassVar[list[str]] = []
    broken: ClassVar[int] = 0
    rollout: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Api.seen.append(self.command)
        if self.headers["Authorization"] != "Bearer t0ken":
            self.answer(403, {"message": "configmaps is forbidden"})
        elif Api.broken > 0:
            Api.broken -= 1
            self.answer(500, {"message": "etcd is electing"})
        elif self.command == "POST" and content["metadata"]["name"] in Api.maps:
            self.answer(409, {"message": "already exists"})
        else:
            Api.maps[content["metadata"]["name"]] = content
            self.answer(201, content)

    do_PUT = do_POST

    def do_GET(self) -> None:
        known = self.path == "/apis/apps/v1/namespaces/test/deployments/engine" and Api.rollout
        if not known:
            self.answer(404, {"message": "not found"})
        else:
            self.answer(200, Api.rollout[0] if len(Api.rollout) == 1 else Api.rollout.pop(0))

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Api]]:
    Api.maps, Api.seen, Api.broken, Api.rollout = {}, [], 0, []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("t0ken\n")
    (account / "ca.crt").write_bytes(certificate.read_bytes())
    monkeypatch.setenv("TOLLGATE_SERVICEACCOUNT", str(account))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_address[1]))
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT_HTTPS", raising=False)
    yield Api
    server.shutdown()
    server.server_close()


def config(folder: Path, url: str, **changes: Any) -> Path:
    file = folder / "bench.json"
    file.write_text(
        json.dumps(
            {
                "url": url,
                "engine": "ollama",
                "model": "tiny",
                "traffic": {"arrival": "closed", "users": 5, "prompt_tokens": 16.0, "output_tokens": 8.0},
                "objectives": {"e2e_p95_seconds": 5.0},
                "runs": 2,
                "seconds": 1.0,
                "release": "sha256:" + "a" * 64,
                "stack": "local-dev",
                "replicas": 10,
                "environment": {"accelerator": "nvidia-l4", "simulated": True},
                "result_configmap": "bench-result-abc",
                "namespace": "test",
                "ready_timeout": 5.0,
                **changes,
            }
        )
    )
    return file


def test_the_job_measures_and_leaves_the_result_in_its_configmap(serve: Serve, api: type[Api], tmp_path: Path) -> None:
    file = config(tmp_path, serve("--ttft", 0.02))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "job", "--config", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stored = api.maps["bench-result-abc"]
    assert stored["metadata"]["namespace"] == "test"
    result = Result.model_validate_json(stored["data"]["result.json"])
    assert result.stack == "local-dev"
    assert result.release == "sha256:" + "a" * 64
    assert result.replicas == 10
    assert result.environment["accelerator"] == "nvidia-l4"
    assert len(result.runs) == 2
    # Only a machine that is too busy may make a run count for nothing, and it says so.
    assert all(run.valid or "client-bound" in run.invalid_because for run in result.runs)
    assert result.runs[0].metrics["goodput"] == 1.0
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"measured: [012] of 2 runs valid", lines[-1])
    assert any("req/s" in line and "eta" in line for line in lines)
    assert len(lines) < 20
    assert "t0ken" not in done.stdout


def rollout(generation: int, *, updated: int, ready: int, there: int = 2) -> dict[str, Any]:
    """A Deployment of two replicas in its second generation, as its controller of that generation sees it."""
    status = {"observedGeneration": generation, "replicas": there, "updatedReplicas": updated, "readyReplicas": ready}
    return {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}


def test_nothing_is_measured_before_the_rollout_is_whole(serve: Serve, api: type[Api], tmp_path: Path) -> None:
    api.rollout[:] = [
        rollout(1, updated=2, ready=2),
        rollout(2, updated=1, ready=2),
        rollout(2, updated=2, ready=2, there=3),
        rollout(2, updated=2, ready=2),
    ]
    file = config(tmp_path, serve(), runs=1, seconds=0.5, workload="apps/v1/deployments/engine")
    command = [sys.executable, "-m", "bench", "job", "--config", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("waiting for apps/")] == [
        "waiting for apps/v1/deployments/engine: its controller has not seen the new specification yet",
        "waiting for apps/v1/deployments/engine: 2 replicas wanted, 2 there, 1 updated, 2 ready",
        "waiting for apps/v1/deployments/engine: 2 replicas wanted, 3 there, 2 updated, 2 ready",
    ]
    assert len(api.rollout) == 1


def test_a_rollout_that_does_not_end_is_no_measurement(
    api: type[Api], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.rollout[:] = [rollout(2, updated=1, ready=1)]
    file = config(tmp_path, "http://127.0.0.1:9", workload="apps/v1/deployments/engine", rollout_timeout=0.6)
    assert job.main(file) == 1
    assert "was not rolled out within 1 s: 2 replicas wanted" in capsys.readouterr().out
    assert not api.maps


def test_an_older_result_of_the_same_name_is_replaced(api: type[Api]) -> None:
    maps = job.ConfigMaps()
    maps.store("test", "r", '{"a":1}', {})
    maps.store("test", "r", '{"a":2}', {})
    assert api.maps["r"]["data"]["result.json"] == '{"a":2}'
    assert api.seen == ["POST", "POST", "PUT"]


def test_a_passing_fault_of_the_api_server_is_waited_out(api: type[Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube.time, "sleep", lambda _: None)
    api.broken = 2
    job.ConfigMaps().store("test", "r", "{}", {})
    assert len(api.seen) == 3


def test_a_refusal_is_told_and_not_repeated(api: type[Api], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "account" / "token").write_text("other")
    with pytest.raises(stacks.TollgateError, match="403: configmaps is forbidden"):
        job.ConfigMaps().store("test", "r", "{}", {})
    assert len(api.seen) == 1


def test_a_large_result_is_packed() -> None:
    text = json.dumps({"x": "y" * 600_000})
    packed = kube.payload(text)["binaryData"]["result.json"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == text
    assert "data" in kube.payload("{}")


def test_a_service_that_is_not_there_ends_the_job_with_one_line(
    api: type[Api], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(job._main, "_TERMINATION_LOG", log)
    code = job.main(config(tmp_path, "http://127.0.0.1:1", ready_timeout=0.5))
    last = capsys.readouterr().out.splitlines()[-1]
    assert code == 1
    assert "does not answer" in last
    assert log.read_text() == last
    assert api.maps == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": 0}, "runs"),
        ({"engine": "tgi"}, "engine"),
        ({"surprise": 1}, "surprise"),
        ({"release": "latest"}, "release"),
        ({"traffic": {"arrival": "closed", "prompt_tokens": 1.0, "output_tokens": 1.0}}, "users"),
    ],
)
def test_a_wrong_config_names_its_key_and_exits_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    assert job.main(config(tmp_path, "http://127.0.0.1:1", **changes)) == 2
    assert words in capsys.readouterr().out


def test_outside_a_pod_that_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert job.main(config(tmp_path, "http://127.0.0.1:1")) == 1
    assert "only from within a pod" in capsys.readouterr().out
