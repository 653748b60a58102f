"""`tollgate batch` as people type it: submit, run, look, pause, resume, cancel, fetch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import batch
from tests.ports import free_port
from tollgate.__main__ import main
from tollgate.commands import _benching

ROOT = Path(__file__).parents[3]
Tollgate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tollgate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tollgate:
    """The command line within this process, for it is called often."""
    for name in [name for name in os.environ if name.startswith("TOLLGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOLLGATE_BATCHES", str(tmp_path / "batches"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["tollgate", "batch", *map(str, words)])
        capfd.readouterr()
        ended: object = 0
        try:
            main()
        except SystemExit as exit:
            ended = exit.code or 0
        out, err = capfd.readouterr()
        assert ended == code, (words, ended, out, err)
        return subprocess.CompletedProcess(words, code, out, err)

    return call


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[str]:
    """vLLM's stand-in, which has a model called tiny."""
    port = free_port()
    words = ["vllm", "serve", "tiny", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"]
    env = {**os.environ, "TOLLGATE_SIM_TTFT": "5ms", "TOLLGATE_SIM_ITL": "1ms", "TOLLGATE_SIM_OUTPUT_TOKENS": "8"}
    process = subprocess.Popen([sys.executable, "-m", "bench.simulator", *words], cwd=ROOT, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_a_csv_goes_through_vllms_simulator_and_comes_back_in_order(
    tollgate: Tollgate, simulator: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,text\n" + "".join(f"n{i},word {i}\n" for i in range(200)))
    done = tollgate(
        "submit", rows, "-e", f"{simulator},slots=16", "--model", "tiny", "--template", "Say {text}", "--id-column", "id",
        "--set", "max_tokens=8", "--cost-per-million-out", 1000, "--cost-per-million-in", 0, "--id", "words",
    )  # fmt: skip
    assert done.stdout == "words\n"
    assert "200 inputs; run them: tollgate batch run words" in done.stderr
    assert "nobody works on it" in tollgate("status", "words").stdout
    done = tollgate("run", "wor", "-o", tmp_path / "out.jsonl", "--errors", tmp_path / "err.jsonl")
    assert "words  done: 200 answered, 0 failed, 0 left" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"n{i}" for i in range(200)]
    assert all(line["response"]["body"]["object"] == "chat.completion" for line in lines)
    spent = sum(line["tollgate"]["tokens_out"] for line in lines)
    assert sum(line["tollgate"]["cost_usd"] for line in lines) == pytest.approx(spent * 1000 / 1e6)
    assert (tmp_path / "err.jsonl").read_text() == ""
    shown = json.loads(tollgate("status", "words", "--json").stdout)
    assert (shown["state"], shown["ok"], shown["left"], shown["tokens_out"]) == ("done", 200, 0, spent)
    assert "words  done  200 of 200" in tollgate("status").stdout
    assert tollgate("results", "words").stdout == (tmp_path / "out.jsonl").read_text()
    # Too long for the model's context: refused by the engine, listed, and not asked again.
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "word " * 2000}) + '\n{"prompt": "short"}\n')
    tollgate("submit", long, "-e", simulator, "--model", "tiny", "--id", "long")
    tollgate("run", "long", "-o", "-", "--errors", tmp_path / "err.jsonl")
    [line] = [json.loads(line) for line in (tmp_path / "err.jsonl").read_text().splitlines()]
    assert (line["custom_id"], line["error"]["code"], line["tollgate"]["tries"]) == ("row-1", "http_400", 1)


def test_a_batch_is_watched_paused_resumed_and_cancelled_while_it_runs(
    tollgate: Tollgate, serve: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve(delay=0.2)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(5000)))
    tollgate(
        "submit", "in.jsonl", "-e", server.url, "--model", "m", "--id", "b", "--budget", 1, "--cost-per-hour", 3600
    )
    command = [sys.executable, "-m", "tollgate", "batch", "run", "b", "-c", "8", "--deadline", "10s"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        while json.loads(tollgate("status", "b", "--json").stdout)["ok"] < 80:
            assert time.monotonic() < end
        shown = json.loads(tollgate("status", "b", "--json").stdout)
        assert (shown["runners"], shown["endpoints"][server.url]["limit"]) == (1, 8)
        assert shown["spent_usd"] > 0
        assert shown["eta"]["certain"] is False
        assert "the rate has lasted only" in shown["eta"]["because"]
        assert any("deadline cannot be kept" in words for words in shown["warnings"])
        assert any("budget cannot be kept" in words for words in shown["warnings"])
        tollgate("pause", "b")
        assert "paused   by hand" in tollgate("status", "b").stdout
        assert tollgate("watch", "b").stdout.startswith("b  paused")
        assert "b is paused already" not in tollgate("resume", "b").stdout
        before = json.loads(tollgate("status", "b", "--json").stdout)["ok"]
        while json.loads(tollgate("status", "b", "--json").stdout)["ok"] <= before:
            assert time.monotonic() < end
        runner.send_signal(signal.SIGINT)
        _, said = runner.communicate(timeout=60)
        assert runner.returncode == 130
        assert "go on: tollgate batch run b" in said
        assert "WARNING" in said
        # Told to stop while somebody has paused it: nothing is wrong, and what comes first is said.
        runner = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while json.loads(tollgate("status", "b", "--json").stdout)["runners"] < 1:
            assert time.monotonic() < end + 60
        tollgate("pause", "b")
        runner.send_signal(signal.SIGINT)
        _, said = runner.communicate(timeout=60)
        assert runner.returncode == 130
        assert "go on: tollgate batch resume b, then tollgate batch run b" in said
    finally:
        runner.kill()
        runner.wait()
    tollgate("cancel", "b")
    assert "b is cancelled already" in tollgate("cancel", "b", code=1).stderr
    assert "is cancelled" in tollgate("run", "b", code=1).stderr
    assert tollgate("results", "b", "-o", "out.jsonl").stderr.startswith(f"{len(server.asked())} answers")


def test_errors_name_what_was_given_and_the_way_out(tollgate: Tollgate, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}\n')
    assert "none is in" in tollgate("run", "x", code=2).stderr
    assert "no model" in tollgate("submit", "in.jsonl", code=2).stderr
    assert "cannot be read" not in tollgate("submit", "nothing.jsonl", code=2).stderr
    assert "slots=N" in tollgate("submit", "in.jsonl", "-e", "http://a,slots=x", code=2).stderr
    assert "--deadline" in tollgate("submit", "in.jsonl", "--model", "m", "--deadline", "soon", code=2).stderr
    name = tollgate("submit", "in.jsonl", "--model", "m").stdout.strip()
    assert "at least one" in tollgate("run", name, code=2).stderr
    assert (
        "whose slots are not known" in tollgate("run", name, "-e", "http://127.0.0.1:1", "--share", 0.5, code=2).stderr
    )
    done = tollgate("run", name, "-e", "http://127.0.0.1:1", "--patience", 1, "--timeout", 1, code=1)
    assert "no endpoint has answered for 1 s: http://127.0.0.1:1: connection_refused" in done.stderr
    assert "nothing is lost" in done.stderr


def test_a_budget_that_the_inputs_already_exceed_is_told_when_they_are_submitted(
    tollgate: Tollgate, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(1000)))
    given = ["submit", "in.jsonl", "-e", "http://127.0.0.1:9", "--model", "m", "--set", "max_tokens=1000"]
    said = tollgate(*given, "--cost-per-million-out", 2, "--budget", 0.5).stderr
    assert "expected: about 2.00 $ by the length of the inputs and their max_tokens" in said
    assert "WARNING: the budget cannot be kept" in said
    assert "250 of the 1,000 inputs left" in said
    # What hours cost is not known before anybody has answered.
    assert "expected" not in tollgate(*given, "--cost-per-hour", 2, "--budget", 0.5).stderr


def test_a_stack_gives_address_model_slots_and_price_and_its_plan_speaks_first(
    tollgate: Tollgate, serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(_benching, "place", lambda *_: _benching.Place(url=server.url))
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(300)))
    tollgate("submit", file, "-e", "local-dev", "--id", "b", "--priority", 7, "--budget", 0.0001)
    done = tollgate("run", "b", "--deadline", "1s", "--share", 0.1, "-o", tmp_path / "out.jsonl")
    assert "by the plan" in done.stderr
    assert "WARNING: the budget cannot be kept (as far as can be told: nothing is measured yet)" in done.stderr
    assert "WARNING: the deadline cannot be kept (as far as can be told: nothing is measured yet" in done.stderr
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert line["response"]["body"]["model"] == "gemma3:4b"
    # Ten nodes with 8 slots each, and a tenth of them.
    assert 1 <= server.most() <= 8


@pytest.mark.parametrize("how", ["unloaded", "restarted"])
def test_ollama_may_unload_its_model_or_be_restarted_in_the_middle(
    tollgate: Tollgate, tmp_path: Path, how: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {
        **os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NUM_PARALLEL": "4", "TOLLGATE_SIM_MODELS": "gemma3:4b",
        "TOLLGATE_SIM_SPEED": "20", "TOLLGATE_SIM_LOAD_SECONDS": "10", "TOLLGATE_SIM_GRACE": "0",
    }  # fmt: skip

    def ollama() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "bench.simulator", "ollama"], cwd=ROOT, env=env)

    engine = ollama()
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(150)))
    tollgate(
        "submit", file, "-e", url, "--model", "gemma3:4b", "--path", "/api/generate", "--id", "b",
        "--set", 'options={"num_predict":8}',
    )  # fmt: skip
    seen: list[int] = []

    def upset() -> None:
        nonlocal engine
        queue = batch.open_queue(str(tmp_path / "batches"), "b")
        while (done := queue.counts().done) < 40:
            time.sleep(0.02)
        seen.append(done)
        if how == "restarted":
            engine.kill()
            engine.wait()
            time.sleep(1)
            engine = ollama()
        else:
            body = json.dumps({"model": "gemma3:4b", "keep_alive": 0}).encode()
            urllib.request.urlopen(urllib.request.Request(f"{url}/api/generate", body), timeout=60).close()

    thread = threading.Thread(target=upset, daemon=True)
    thread.start()
    try:
        done = tollgate("run", "b", "--tries", 1, "--timeout", 60, "-o", tmp_path / "out.jsonl")
        thread.join(60)
        assert seen
        assert seen[0] < 150
        assert "b  done: 150 answered, 0 failed" in done.stderr
        answers = [json.loads(line)["response"]["body"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert all(answer["done"] and answer["eval_count"] == 8 for answer in answers)
        assert len(answers) == 150
    finally:
        engine.terminate()
        engine.wait(60)
