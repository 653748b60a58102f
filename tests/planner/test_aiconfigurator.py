"""AIConfigurator as a latency source, by a stand-in that answers in its format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import planner
from stacks import InputError, Release, TollgateError, load_release

STAND_IN = """#!{python}
import sys
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
batch, prompt = int(given["--batch-size"]), int(given["--isl"])
if given["--estimate-mode"] == "static_gen":
    context = prompt + int(given["--osl"]) / 2
    print(f"  TPOT:             {{6.0 + batch * (0.02 + context * 0.00004):.6f}} ms")
else:
    print(f"  TTFT:             {{prompt * 0.02:.3f}} ms")
"""


def release(**change: Any) -> Release:
    base = load_release("gemma-3-4b-vllm").model_dump()
    base.update(model="llama-3.1-8b-instruct", accelerator={"gpu": "nvidia-h100-80gb"}, **change)
    return Release.model_validate(base)


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "aiconfigurator"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def test_its_steps_come_back_out_of_the_timing(program: str) -> None:
    times = planner.aiconfigurator_timing(release(), program=program)
    for batch, context in ((1, 300.0), (64, 288.0), (200, 1000.0)):
        expected = (6.0 + batch * (0.02 + context * 0.00004)) / 1e3
        assert times.decode_step_seconds(batch, context) == pytest.approx(expected, rel=1e-3)
    assert times.prefill_seconds(512, 1) == pytest.approx(512 * 0.02e-3)
    assert times.slots == planner.timing(release()).slots


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model": "gemma-3-4b-it"}, "model"),
        ({"accelerator": {"gpu": "nvidia-l4"}, "quantization": "awq-int4"}, "gpu"),
        ({"accelerator": {"gpu": "nvidia-h100-80gb", "mig_profile": "3g.40gb"}}, "mig"),
    ],
)
def test_what_it_has_no_data_for_is_refused(program: str, change: dict[str, Any], where: str) -> None:
    asked = Release.model_validate({**release().model_dump(), **change})
    with pytest.raises(InputError) as caught:
        planner.aiconfigurator_timing(asked, program=program)
    assert where in caught.value.where


def test_an_answer_without_numbers_is_said(tmp_path: Path) -> None:
    path = tmp_path / "aiconfigurator"
    path.write_text("#!/bin/sh\necho no data for this >&2\nexit 3\n")
    path.chmod(0o755)
    with pytest.raises(TollgateError, match="no data for this"):
        planner.aiconfigurator_timing(release(), program=str(path))
