"""Stack, release, pipeline and limit files by somebody who means harm: one clear error each, in no time, repeating nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import planner
import preview
import stacks
import values
from tests.attack.conftest import CANARY


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refused(load: Callable[[], object]) -> stacks.InputError:
    began = time.process_time()
    with pytest.raises(stacks.InputError) as caught:
        load()
    assert time.process_time() - began < 10
    return caught.value


def bomb() -> str:
    """Nine levels of ten references each: a thousand million leaves in 600 bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


HOSTILE = {
    "a bomb": bomb(),
    "deep": "[" * 200_000,
    "deep mappings": "{a: " * 50_000,
    "an object": "a: !!python/object/apply:os.system ['true']",
    "digits": "context_tokens: " + "9" * 100_000,
    "a surrogate": 'a: "\\ud800"',
    "a control character": "a: \x07",
    "bad binary": 'a: !!binary "////"',
    "a bad date": "a: 2020-99-99",
    "a key that is a list": "? [a, b]\n: 1",
    "no mapping": "- a",
    "nothing": "",
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
@pytest.mark.parametrize("where", ["release", "stack", "pipeline"])
def test_a_hostile_file_is_one_clear_error(project: Path, what: str, where: str) -> None:
    folder = project / "stacks"
    path = {
        "release": folder / "releases" / "gemma-3-4b-ollama-8.yaml",
        "stack": folder / "Pulumi.local-dev.yaml",
        "pipeline": folder / "pipeline.yaml",
    }[where]
    path.write_text(HOSTILE[what])
    load: dict[str, Callable[[], object]] = {
        "release": lambda: stacks.load_release("gemma-3-4b-ollama-8", project),
        "stack": lambda: stacks.load_stack("local-dev", project),
        "pipeline": lambda: stacks.load_pipeline(project),
    }
    error = refused(load[where])
    assert path.name in error.where or "release" in error.where
    assert len(str(error)) < 2000


@pytest.mark.parametrize("what", sorted(set(HOSTILE) - {"nothing"}))
def test_hostile_limits_of_the_preview_are_one_clear_error(project: Path, what: str) -> None:
    (project / "stacks" / "preview.yaml").write_text(HOSTILE[what])
    refused(lambda: preview.load_limits(project))


def test_a_key_that_stands_twice_is_refused_with_its_line(stack_file: Path, project: Path) -> None:
    # A reviewer sees the first promise, the program would have kept the second.
    edit(stack_file, "  tollgate:objectives:", "  tollgate:objectives: {error_rate: 0.01}\n  tollgate:objectives:")
    error = refused(lambda: stacks.load_stack("local-dev", project))
    assert error.got == "tollgate:objectives a second time"
    assert ", line " in error.where


def test_a_release_cannot_call_itself_by_another_name(project: Path) -> None:
    path = project / "stacks" / "releases" / "gemma-3-4b-ollama-1.yaml"
    edit(path, "engine: ollama", "name: gemma-3-4b-ollama-8\nengine: ollama")
    assert refused(lambda: stacks.load_release("gemma-3-4b-ollama-1", project)).where.endswith("yaml, name")


def test_a_link_out_of_the_project_is_not_read_aloud(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "credentials.yaml"
    outside.write_text(f"engine: {CANARY}\n")
    (project / "stacks" / "releases" / "link.yaml").symlink_to(outside)
    error = refused(lambda: stacks.load_release("link", project))
    assert error.got == "a link out of the project"
    assert CANARY not in str(error)


def test_a_link_inside_the_project_is_a_file_like_any_other(project: Path) -> None:
    (project / "stacks" / "releases" / "same.yaml").symlink_to("gemma-3-4b-ollama-8.yaml")
    assert stacks.load_release("same", project).engine == "ollama"


def test_what_never_ends_is_not_read(project: Path) -> None:
    os.mkfifo(project / "stacks" / "releases" / "pipe.yaml")
    assert refused(lambda: stacks.load_release("pipe", project)).got == "no regular file"
    (project / "stacks" / "releases" / "zero.yaml").symlink_to("/dev/zero")
    refused(lambda: stacks.load_release("zero", project))


def test_a_file_of_two_megabytes_is_not_read(project: Path) -> None:
    path = project / "stacks" / "releases" / "big.yaml"
    path.write_text("# " + "x" * 2_000_000)
    assert "bytes" in refused(lambda: stacks.load_release("big", project)).got


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "/etc/passwd", "a/../local-dev", "--help", "", "local-dev\n", "*"]
)
def test_no_name_of_a_stack_or_release_leads_out_of_their_folders(project: Path, name: str) -> None:
    refused(lambda: stacks.load_stack(name, project))
    refused(lambda: stacks.load_release(name, project))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image: ollama/ollama:0.17.4", 'image: "ollama/ollama:0.17.4\\n"'),
        ("image: ollama/ollama:0.17.4", "image: \"ollama/ollama:{{ lookup('v1', 'Secret', '', '') }}\""),
        ("image: ollama/ollama:0.17.4", "image: --privileged"),
        ("source: gemma3:4b", 'source: "gemma3:4b; reboot"'),
        ("source: gemma3:4b", "source: --help"),
        ("source: gemma3:4b", 'source: "$(reboot)"'),
        ("source: gemma3:4b", 'source: "{{ .Values.secret }}"'),
        ("model: gemma-3-4b-it", "model: ../../etc"),
        ("chart: engine", "chart: ../../../tmp/chart"),
        ("chart: engine", "chart: /tmp/chart"),
        ("engine: ollama", 'engine: "../simulator"'),
        ("version: 0.17.4", 'version: "0.17.4 --flag"'),
    ],
)
def test_no_value_of_a_release_leaves_its_place(project: Path, key: str, value: str) -> None:
    """Into a shell, an argument list, a template or a path; some are well-formed and refused by what looks them up."""
    edit(project / "stacks" / "releases" / "gemma-3-4b-ollama-8.yaml", key, value)

    def all_of_it() -> None:
        stack = stacks.load_stack("local-dev", project)
        values.chart_of(stack.release)
        values.render(stack, planner.plan(stack))

    refused(all_of_it)


@pytest.mark.parametrize(
    "line",
    [
        f"tollgate:apiKey: {CANARY}",
        f"tollgate:serving: {{api_key: {CANARY}}}",
        f"tollgate:serving: {{hugging_face_token: {CANARY}}}",
        f"tollgate:secrets: {{apiKey: {CANARY}}}",
        f"tollgate:serving: {{secret: {{password: {CANARY}}}}}",
        f"tollgate:gateway: {{credentials: [{{token: {CANARY}}}]}}",
        f"tollgate:anything: [{{apiKey: {CANARY}}}]",
    ],
)
def test_a_secret_put_into_the_wrong_place_is_not_repeated(project: Path, stack_file: Path, line: str) -> None:
    edit(stack_file, "  tollgate:target: local", f"  tollgate:target: local\n  {line}")
    error = refused(lambda: stacks.load_stack("local-dev", project))
    assert CANARY not in str(error)
    # It still says where.
    assert "tollgate:" in error.where


_BOOK = "cloud,region,machine_type,on_demand_usd_per_hour,spot_usd_per_hour,source,as_of,note\n"


@pytest.mark.parametrize(
    "row",
    [
        f"gcp,{'x' * 200_000},m,1,,s,2026,",
        "gcp,r",
        "gcp,r,m,inf,,s,2026,",
        "gcp,r,m,nan,,s,2026,",
        "gcp,r,m,1e-999999999,,s,2026,",
        "gcp,r,m,1e999999999,,s,2026,",
        "gcp,r,m,-1,,s,2026,",
        "gcp,r,m,1,2,s,2026,",
        "gcp,r,m,1,,s,2026-13-45,",
        '"gcp,r,m,1',
    ],
    ids=lambda row: row[:24],
)
def test_a_hostile_price_book_is_one_clear_error(tmp_path: Path, row: str) -> None:
    (tmp_path / "book.csv").write_text(_BOOK + row + "\n")
    assert "line" in refused(lambda: planner.price_book(tmp_path / "book.csv")).where


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "{}", "null", "1", '{"runs": "x"}', '"\\ud800"', ""]
)
def test_a_hostile_result_or_preview_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    refused(lambda: planner.read_results(tmp_path / "r.json"))
    refused(lambda: preview.from_json(text))


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_KEYS = (
    "target",
    "fleet",
    "traffic",
    "objectives",
    "benchmark",
    "serving",
    "gateway",
    "dns",
    "gke",
    "evidence",
    "namespace",
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(key=st.sampled_from(_KEYS), value=_VALUES)
def test_no_value_at_all_is_more_than_a_clear_error(project: Path, key: str, value: object) -> None:
    path = project / "stacks" / "Pulumi.fuzz.yaml"
    config = yaml.safe_load((project / "stacks" / "Pulumi.local-dev.yaml").read_text())["config"]
    path.write_text(yaml.safe_dump({"config": {**config, f"tollgate:{key}": value}}, allow_unicode=False))
    said = ""
    try:
        stacks.load_stack("fuzz", project)
    except stacks.InputError as error:
        said = str(error)
    assert len(said) < 3000


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=st.text(max_size=200) | st.text(alphabet="{}[]:,-&*!?|>#\n a1'\"%@`", max_size=80))
def test_no_text_at_all_is_more_than_a_clear_error(project: Path, text: str) -> None:
    (project / "stacks" / "releases" / "fuzz.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(stacks.InputError):
        stacks.load_release("fuzz", project)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(value=_VALUES)
def test_no_pipeline_at_all_is_more_than_a_clear_error(project: Path, value: object) -> None:
    path = project / "stacks" / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"stages": [{"stack": "local-dev"}, {"stack": "local-prod", "criteria": value}]}))
    said = ""
    try:
        stacks.load_pipeline(project)
    except stacks.InputError as error:
        said = str(error)
    assert len(said) < 3000
