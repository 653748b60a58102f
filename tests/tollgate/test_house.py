"""The house as docs/architecture.md draws it: which room may import which, and what a room's door shows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.tollgate.conftest import HERE

ROOMS = ("bench", "components", "gate", "local", "planner", "preview", "stacks", "tollgate", "values")


def drawn() -> dict[str, set[str]]:
    """Room -> rooms that it may import, out of the table of docs/architecture.md."""
    text = (HERE / "docs" / "architecture.md").read_text()
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE):
        left, _, right = line.partition("|")
        names = re.findall(r"`([a-z]+)`", left)
        if not names or not set(names) <= set(ROOMS):
            continue
        allowed = set(ROOMS) if right.strip() == "all" else set(re.findall(r"`([a-z]+)`", right))
        for name in names:
            found.setdefault(name, allowed)
    return found


@cache
def tracked() -> tuple[Path, ...]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *(f"{room}/*.py" for room in ROOMS)],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return tuple(HERE / name for name in done.stdout.splitlines() if (HERE / name).is_file())


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import in a file, also those inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def arrows(folder: Path, paths: tuple[Path, ...]) -> Iterator[tuple[str, str, str]]:
    """(importing room, imported dotted name, where) of every import of one room by another."""
    for path in paths:
        place = path.relative_to(folder)
        for line, name in imports(path):
            other = name.partition(".")[0]
            if other in ROOMS and other != place.parts[0]:
                yield place.parts[0], name, f"{place}:{line}"


def wrong(rules: dict[str, set[str]], found: Iterator[tuple[str, str, str]]) -> list[str]:
    return sorted(
        {f"{where}: {room} -> {name}" for room, name, where in found if name.split(".")[0] not in rules[room]}
    )


def private(found: Iterator[tuple[str, str, str]]) -> list[str]:
    """Imports of what begins with an underscore in another room."""
    return sorted({f"{where}: {name}" for _, name, where in found if re.search(r"\._[a-z]", name)})


def test_the_drawing_names_every_room() -> None:
    rules = drawn()
    assert set(rules) == set(ROOMS)
    assert rules["stacks"] == set()
    assert rules["tollgate"] == set(ROOMS)


def test_every_arrow_points_the_way_that_is_drawn() -> None:
    assert len(tracked()) > 200
    assert wrong(drawn(), arrows(HERE, tracked())) == []


def test_nobody_imports_what_another_room_keeps_to_itself() -> None:
    assert private(arrows(HERE, tracked())) == []


def test_the_gate_takes_nothing_of_the_benchmark_but_its_results() -> None:
    names = {name for room, name, _ in arrows(HERE, tracked()) if room == "gate" and name.startswith("bench")}
    assert names
    assert {name for name in names if not name.startswith("bench.results")} == set()


def test_a_wrong_arrow_and_a_foreign_underscore_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "planner" / "_new.py"
    path.parent.mkdir()
    path.write_text("def f():\n    import gate\n    from stacks._models import Stack\n")
    found = list(arrows(tmp_path, (path,)))
    assert wrong(drawn(), iter(found)) == ["planner/_new.py:2: planner -> gate"]
    assert private(iter(found)) == ["planner/_new.py:3: stacks._models", "planner/_new.py:3: stacks._models.Stack"]


def test_the_rooms_form_no_circle() -> None:
    rules = {room: allowed - {room} for room, allowed in drawn().items()}
    left = set(ROOMS)
    while left:
        free = {room for room in left if not rules[room] & left}
        assert free, f"a circle among {sorted(left)}"
        left -= free


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in ("local", "tollgate")])
def test_a_rooms_door_names_what_it_shows_in_order(room: str) -> None:
    tree = ast.parse((HERE / room / "__init__.py").read_text())
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    if room == "bench":
        # Its parts are rooms of their own: bench.load, bench.results …
        return
    (names,) = lists
    # As ruff sorts it: constants, classes, functions.
    assert sorted(names, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n)) == names


def test_no_file_is_longer_than_a_person_reads() -> None:
    long = {str(path.relative_to(HERE)): n for path in tracked() if (n := len(path.read_text().splitlines())) > 500}
    assert long == {}


# Called by name from outside: by parsers, servers, Pulumi's engine, and the command line's own library.
_CALLED_BY_OTHERS = re.compile(
    r"do_[A-Z]+|on_\w+|datagram_received|readinto|pause_writing|resume_writing|exec_module|new_resource|list_commands|format_commands"
    r"|[A-Z]\w+(?<=[a-z])"
)


def test_no_option_of_a_command_is_dead() -> None:
    """Every parameter of a command is read in its body."""
    dead = []
    for path in tracked():
        if path.parent != HERE / "tollgate" / "commands":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                read = {name.id for part in node.body for name in ast.walk(part) if isinstance(name, ast.Name)}
                given = [one.arg for one in (*node.args.args, *node.args.kwonlyargs) if not one.arg.startswith("_")]
                dead += [
                    f"{path.name}:{node.lineno} {name}" for name in given if name not in read and "locals" not in read
                ]
    assert dead == []


def test_no_function_is_named_only_where_it_is_defined() -> None:
    texts = {path: path.read_text() for path in tracked()}
    words = Counter(word for text in texts.values() for word in re.findall(r"\w+", text))
    others = [*(HERE / "tests").rglob("*.py"), *(HERE / "benchmarks").rglob("*.py"), *(HERE / "docs").rglob("*.py")]
    elsewhere = set(re.findall(r"\w+", "\n".join(path.read_text() for path in others)))
    dead = [
        f"{path.relative_to(HERE)}:{node.lineno} {node.name}"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and words[node.name] == 1
        and not node.decorator_list
        and not node.name.startswith("__")
        and not _CALLED_BY_OTHERS.fullmatch(node.name)
        and node.name not in elsewhere
    ]
    assert dead == []
