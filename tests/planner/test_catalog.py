"""The catalog: valid, in step with its compiled form, and light to read."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import planner
from planner import _catalog, _memory, _queueing, _schema
from stacks import InputError, Objectives, Tokens, Traffic


def test_the_compiled_catalog_is_what_the_yaml_says() -> None:
    compiled = json.loads(json.dumps(_schema.compile_catalog(_catalog.sources())))
    assert json.loads(_catalog.COMPILED.read_text()) == compiled, "run: python -m planner._schema"


def test_a_changed_yaml_is_read_although_the_compiled_form_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    files = _catalog.sources()
    files["gpus.yaml"] = files["gpus.yaml"].replace(
        b"bandwidth_gb_per_second: 300\n", b"bandwidth_gb_per_second: 301\n"
    )
    monkeypatch.setattr(_catalog, "sources", lambda: files)
    assert _catalog.parse(_catalog._compiled()).gpus["nvidia-l4"].bandwidth == 301e9


@pytest.mark.parametrize("name", ["gemma3:4b", "google/gemma-3-4b-it", "gemma-3-4b-it", "GEMMA3:4B"])
def test_a_model_is_found_by_each_of_its_names(name: str) -> None:
    assert planner.find_model(name).id == "gemma-3-4b-it"


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        planner.find_model("gemma3:5b")
    assert "gemma-3-4b-it" in caught.value.allowed


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (b"count: 7, memory_mib: 4864", b"count: 7, memory_mib: 9864", "more memory"),
        (b"parameters: 4300079472", b"parameters: 7300079472", "architecture"),
        (b"heads: 8\n", b"heads: 7\n", "multiple"),
        (b"gpu: nvidia-l4, gpus: 1, vcpus: 4,", b"gpu: nvidia-l9, gpus: 1, vcpus: 4,", "nvidia-l4"),
        (b"kind: fitted", b"kind: guessed", "assumed"),
        (b"layers: 34", b"layers: 34\n  colour: red", "Extra"),
        (b"network_gbps: 10, regions: l4", b"network_gbps: 10, regions: l5", "not one of any, l4"),
        (b"network_gbps: 10, regions: l4", b"network_gbps: 10", "Field required"),
    ],
)
def test_a_wrong_catalog_is_refused_with_the_reason(before: bytes, after: bytes, word: str) -> None:
    files = {name: content.replace(before, after, 1) for name, content in _catalog.sources().items()}
    assert files != _catalog.sources()
    with pytest.raises(InputError, match=word):
        _schema.compile_catalog(files)


def test_every_entry_says_where_it_is_from_and_when() -> None:
    for gpu in planner.catalog().gpus.values():
        assert gpu.source.startswith("https://")
        assert gpu.as_of
    for model in planner.catalog().models.values():
        assert model.source.startswith("https://") or model.id == "tollgate-tiny"  # its weights are made here
        assert model.as_of
    for machine in planner.catalog().machines.values():
        assert machine.source
        assert machine.as_of.startswith("20")
    for quantization in planner.catalog().quantizations.values():
        assert quantization.source
        assert quantization.as_of.startswith("20")
    for engine in planner.catalog().engines.values():
        assert engine.as_of.startswith("20")
        assert all(kind in ("measured", "fitted", "assumed") and source for kind, source in engine.sources.values())


def test_the_families_people_serve_are_there() -> None:
    families = {model.family for model in planner.catalog().models.values()}
    assert {"gemma", "llama", "qwen", "mistral", "grok"} <= families
    assert {"nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb", "nvidia-h100-80gb", "nvidia-h200-141gb"} == set(
        planner.catalog().gpus
    )


def test_every_gpu_that_can_be_sliced_has_its_slices_with_memory_and_shares() -> None:
    sliced = {gpu.id: len(gpu.mig) for gpu in planner.catalog().gpus.values()}
    assert sliced.pop("nvidia-l4") == 0
    assert min(sliced.values()) >= 4
    seventh = planner.catalog().gpu("h200").mig["1g.18gb"]
    assert (seventh.count, seventh.memory_bytes) == (7, 16 * 2**30)


@pytest.mark.parametrize(
    ("model", "quantization", "gigabytes"),
    [
        # Sizes of the published files: GGUF of the Ollama library, safetensors of Hugging Face.
        ("llama3.1:8b", "q4-k-m", 4.92),
        ("llama3.1:8b", "q8-0", 8.54),
        ("llama3.1:8b", "bf16", 16.06),
        ("llama3.3:70b", "q4-k-m", 42.5),
        ("llama3.3:70b", "q8-0", 74.98),
        ("llama3.3:70b", "bf16", 141.1),
        ("gemma3:4b", "q4-k-m", 3.34),
        ("gemma3:4b", "bf16", 8.6),
        ("qwen2.5:7b", "q4-k-m", 4.68),
        ("mistral-7b-instruct-v0.3", "bf16", 14.5),
        ("llama3.1:8b", "awq-int4", 5.73),
        ("llama3.1:8b", "fp8", 9.08),
    ],
)
def test_the_sizes_per_quantization_are_those_of_the_published_files(
    model: str, quantization: str, gigabytes: float
) -> None:
    known = planner.catalog()
    size = _memory.weights_bytes(known.model(model), known.quantization(quantization))
    assert size / 1e9 == pytest.approx(gigabytes, rel=0.05)


def test_a_latency_is_had_without_pydantic_yaml_or_numpy() -> None:
    code = (
        "import sys, planner\n"
        "t = planner.timing_for(engine='ollama', model='gemma3:4b', quantization='q4-k-m', gpu='nvidia-l4')\n"
        "assert t.decode_step_seconds(1, 128) > 0\n"
        "print([m for m in ('pydantic', 'yaml', 'numpy', 'scipy', 'stacks', 'httpx2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_imports_no_other_room_and_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom tollgate.__main__ import app\n"
        "done = CliRunner().invoke(app, ['plan', '--model', 'gemma3:4b', '--users', '50', '--latency', '5'])\n"
        "assert done.exit_code == 0, done.output\n"
        "heavy = ('numpy', 'scipy', 'pandas', 'httpx2', 'pulumi', 'cryptography', 'jinja2', 'gate', 'bench', 'values', 'local')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "[]"


def test_the_whole_catalog_is_planned_by_few_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 100 ms allow, counted so that a busy machine cannot hide it: a prediction takes about 20 microseconds."""
    count = 0
    predict = _queueing.Station.predict

    def counted(self: _queueing.Station, *arguments: Any) -> planner.Prediction:
        nonlocal count
        count += 1
        return predict(self, *arguments)

    monkeypatch.setattr(_queueing.Station, "predict", counted)
    traffic = Traffic(users=1000, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))
    for name in planner.catalog().models:
        search = planner.Search(model=name, traffic=traffic, objectives=Objectives(e2e_p95_seconds=3.0))
        assert planner.cheapest(search) is not None
    assert count < 1500
