"""Images by digest: preferred, said where they are not, insisted on by stack or pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pulumi
import pytest

import components
import stacks
from tests.components.recording import Recording, record

HERE = Path(__file__).resolve().parents[2]
PINNED = "@sha256:" + "5" * 64


def pinned(stack: stacks.Stack) -> stacks.Stack:
    """The stack with a digest at each of its images."""
    found: dict[str, Any] = {"release": stack.release.model_copy(update={"image": stack.release.image + PINNED})}
    for part in ("gateway", "benchmark"):
        one = getattr(stack, part)
        if one is not None:
            found[part] = one.model_copy(update={"image": one.image + PINNED})
    return stack.model_copy(update=found)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", lambda text, *_, **__: said.append(text))
    return said


def made(stack: stacks.Stack, root: Path = HERE) -> Recording:
    return record(lambda: components.Platform("p", components.PlatformArgs(stack=stack, root=root, enforce=False)))


def test_images_by_tag_are_named_in_one_warning(warned: list[str]) -> None:
    made(stacks.load_stack("staging", HERE).model_copy(update={"benchmark": None}))
    (text,) = [line for line in warned if "by tag alone" in line]
    assert "vllm/vllm-openai:v0.32.0 (release, image)" in text
    assert "haproxy:3.2-alpine (tollgate:gateway.image)" in text
    assert "@sha256:" in text


def test_images_by_digest_are_run_as_they_are_and_nothing_is_said(warned: list[str]) -> None:
    stack = pinned(stacks.load_stack("staging", HERE).model_copy(update={"benchmark": None}))
    recording = made(stack)
    assert not [line for line in warned if "by tag alone" in line]
    proxy = recording.one("Deployment", "gateway-us-central1-proxy").inputs["spec"]["template"]["spec"]
    assert proxy["containers"][0]["image"] == "haproxy:3.2-alpine" + PINNED
    assert recording.one("Release", "engine-us-central1").inputs["values"]["image"].endswith(PINNED)


def test_the_embedded_cluster_has_no_registry_to_be_warned_of(warned: list[str]) -> None:
    made(stacks.load_stack("local-prod", HERE))
    assert not [line for line in warned if "by tag alone" in line]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("release", "release, image"),
        ("gateway", "tollgate:gateway.image"),
        ("benchmark", "tollgate:benchmark.image"),
    ],
)
def test_a_stack_that_wants_digests_wants_them_of_all_it_runs(part: str, field: str) -> None:
    loose = stacks.load_stack("staging", HERE)
    stack = pinned(loose).model_copy(update={"serving": stacks.Serving(digests_only=True)})
    assert stacks.by_tag(stack) == []
    components.refuse(stack)
    with pytest.raises(stacks.InputError, match="the digest that the registry shows") as caught:
        components.refuse(stack.model_copy(update={part: getattr(loose, part)}))
    assert caught.value.where == field


def test_the_pipeline_insists_where_the_stack_does_not(tmp_path: Path) -> None:
    shutil.copytree(HERE / "stacks", tmp_path / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(HERE / "Pulumi.yaml", tmp_path)
    path = tmp_path / "stacks" / "pipeline.yaml"
    text = path.read_text()
    assert "  - stack: llama-70b\n" in text
    path.write_text(text.replace("  - stack: llama-70b\n", "  - {stack: llama-70b, digests_only: true}\n"))
    stack = stacks.load_stack("llama-70b", tmp_path)
    with pytest.raises(stacks.InputError, match=r"stacks/pipeline\.yaml asks for digests in llama-70b"):
        made(stack, tmp_path)
    recording = made(pinned(stack), tmp_path)
    assert recording.one("PromotionCheck").inputs["digestsOnly"] is True


def test_an_image_that_is_none_is_refused_wherever_it_is_named() -> None:
    for model in (stacks.Gateway, stacks.Benchmark):
        with pytest.raises(ValueError, match="repository"):
            model.model_validate({"image": "has spaces:1"})
