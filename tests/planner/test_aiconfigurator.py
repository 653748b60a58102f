"""AIConfigurator as a latency source, by a stand-in that answers in its format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import planner
import tollgate.__main__ as command_line
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


def test_where_it_is_not_installed_the_error_says_how_to_install_it_or_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="tollgate\\[aiconfigurator\\]") as caught:
        planner.aiconfigurator_timing(release())
    assert "not installed" in caught.value.got


def test_the_command_line_plans_with_it(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project" / "stacks"
    (folder / "releases").mkdir(parents=True)
    (folder.parent / "Pulumi.yaml").write_text("name: tollgate\nruntime: python\n")
    (folder / "releases" / "big.yaml").write_text(
        json.dumps(release(parallelism={"slots": 64}).model_dump(mode="json", exclude={"name"}))
    )
    (folder / "Pulumi.one.yaml").write_text(
        "config:\n  tollgate:target: local\n  tollgate:release: big\n"
        "  tollgate:fleet: {machine_type: a3-highgpu-8g, nodes: {min: 1, max: 1}}\n"
        "  tollgate:traffic: {arrival: closed, users: 64, prompt_tokens: 128, output_tokens: 128}\n"
        "  tollgate:objectives: {e2e_p95_seconds: 60}\n"
    )
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("PATH", str(Path(program).parent))
    done = CliRunner().invoke(command_line.app, ["plan", "one", "--aiconfigurator", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    step = json.loads(done.stdout)["plan"]["predicted"]["itl_mean_seconds"]
    assert step == pytest.approx((6.0 + 8 * (0.02 + 192 * 0.00004)) / 1e3, rel=0.3)
