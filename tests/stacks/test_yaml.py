"""Reading YAML by libyaml gives what the slow reader gives, in its words where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import stacks
from stacks import _yaml

HERE = Path(__file__).resolve().parents[2]
WRONG = {
    "a: 1\nb: 2\na: 3\n": (3, "a a second time"),
    "a: {b: 1, b: 2}\n": (1, "b a second time"),
    "a: [1\nb: 2\n": (2, "expected ',' or ']', but got ':'"),
    "a: 1\n\tb: 2\n": (2, "found character '\\t' that cannot start any token"),
    'a: "b\n': (2, "found unexpected end of stream"),
    "a: &x 1\nb: *x\n": (2, "a YAML alias"),
    "a: !!python/name:os.system x\n": (1, "could not determine a constructor for the tag"),
    "a: 1\n---\nb: 2\n": (2, "but found another document"),
}


def outcome(load: Any, text: str) -> object:
    try:
        return repr(load(text))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return type(error)


def slow(text: str) -> Any:
    return yaml.load(text, Loader=_yaml._Plain)


def test_every_file_of_this_project_is_read_by_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((HERE / "stacks").rglob("*.yaml"))
    wanted = {path: slow(path.read_text()) for path in files}
    monkeypatch.setattr(_yaml, "_Plain", None)
    assert {path: _yaml.read_mapping(path, HERE) for path in files} == wanted


@pytest.mark.parametrize("text", sorted(WRONG))
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    line, problem = WRONG[text]
    with pytest.raises(stacks.InputError) as caught:
        _yaml.read_mapping(path, tmp_path)
    assert caught.value.where == f"file.yaml, line {line}"
    assert problem in caught.value.got


@pytest.mark.parametrize("text", ["[" * 400_000, "- " * 400_000, "? " * 300_000, "{a: " * 200_000])
def test_what_nests_too_deep_for_libyaml_is_not_given_to_it(text: str) -> None:
    with pytest.raises((yaml.YAMLError, RecursionError)):
        _yaml._load(text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="ab1.: \n-[]{},\"'#|>!&*?%~\tü\r\ufeff\x85\\", max_size=24))
def test_both_readers_give_the_same(text: str) -> None:
    assert outcome(_yaml._load, text) == outcome(slow, text)
