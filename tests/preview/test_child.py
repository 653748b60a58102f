"""The process that evaluates: what it keeps compiled is found again by contents, and is never another source's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import preview

CHILD = Path(preview.__file__).with_name("_child.py")


def run(root: Path, kept: Path, module: str = "said") -> str:
    """What the module prints; its environment is bare, as that of an evaluation."""
    command = [sys.executable, "-P", str(CHILD), str(kept), module, "x"]
    # Python's own compiled code would be used first.
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(root: Path, word: str) -> Path:
    """Two modules, one of which imports the other; both as old and as long whatever they say."""
    root.mkdir(exist_ok=True)
    (root / "said.py").write_text("import sys\nimport other\nprint(__name__, other.WORD, sys.argv[1:])\n")
    (root / "other.py").write_text(f"WORD = {word!r}\n")
    for path in root.glob("*.py"):
        os.utime(path, (1, 1))
    return root


def kept_files(kept: Path) -> list[Path]:
    return sorted(path for path in kept.rglob("other*") if path.is_file())


def test_a_module_runs_with_its_arguments_and_what_it_imports_is_kept_once(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert run(write(tmp_path / "head", "aaa"), kept) == "__main__ aaa ['x']"
    assert run(write(tmp_path / "base", "aaa"), kept) == "__main__ aaa ['x']"
    assert len(kept_files(kept)) == 1


def test_another_source_of_the_same_name_age_and_size_is_compiled_anew(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert "aaa" in run(write(tmp_path / "head", "aaa"), kept)
    assert "bbb" in run(write(tmp_path / "head", "bbb"), kept)
    assert "aaa" in run(write(tmp_path / "base", "aaa"), kept)
    assert len(kept_files(kept)) == 1


def test_what_is_kept_is_used(tmp_path: Path) -> None:
    kept, root = tmp_path / "kept", write(tmp_path / "head", "aaa")
    run(root, kept)
    (path,) = kept_files(kept)
    data = path.read_bytes()
    assert data.count(b"aaa") == 1
    path.write_bytes(data.replace(b"aaa", b"zzz"))
    assert "zzz" in run(root, kept)


def test_a_kept_file_that_is_cut_off_or_a_folder_that_cannot_be_made_costs_time_only(tmp_path: Path) -> None:
    kept, root = tmp_path / "kept", write(tmp_path / "head", "aaa")
    run(root, kept)
    (path,) = kept_files(kept)
    path.write_bytes(path.read_bytes()[:-5])
    assert "aaa" in run(root, kept)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert "aaa" in run(root, in_the_way)


def test_of_environments_that_nobody_uses_any_more_nothing_is_kept(tmp_path: Path) -> None:
    kept, root = tmp_path / "kept", write(tmp_path / "head", "aaa")
    run(root, kept)
    (own,) = kept.iterdir()
    for number in range(6):
        (kept / f"gone-{number}").mkdir()
        os.utime(kept / f"gone-{number}", (number, number))
    run(root, kept)
    assert {path.name for path in kept.iterdir()} == {own.name, "gone-3", "gone-4", "gone-5"}
    assert kept_files(kept)


def test_a_source_that_does_not_parse_is_the_program_s_error(tmp_path: Path) -> None:
    root = write(tmp_path / "head", "aaa")
    (root / "other.py").write_text("WORD = (\n")
    done = subprocess.run(
        [sys.executable, "-P", str(CHILD), str(tmp_path / "kept"), "said"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr


def test_what_is_seldom_needed_is_loaded_by_the_first_question_for_one_of_its_names(tmp_path: Path) -> None:
    root = tmp_path / "head"
    root.mkdir()
    (root / "dill.py").write_text("print('loaded')\nWORD = 'found'\n")
    asks = "try:\n    dill.other\nexcept AttributeError as error:\n    print(error)\n"
    (root / "said.py").write_text("import dill\nimport dill as again\nprint('imported')\nprint(again.WORD)\n" + asks)
    said = ["imported", "loaded", "found", "module 'dill' has no attribute 'other'"]
    assert run(root, tmp_path / "kept").splitlines() == said
