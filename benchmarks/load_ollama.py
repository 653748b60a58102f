"""The matrix and the choice of slots on the real Ollama: `python benchmarks/load_ollama.py --markdown docs/benchmark-ollama.md`.

The tiny random model on this machine's processors: queueing, slots and batching are Ollama's own, what a token costs is not
what it costs on a GPU. Needs `tollgate tools build --with ollama`; says so and ends well where it has not been built.

Takes about five minutes. Finished cells are kept (in .tollgate/ollama-matrix, or where --json says), so that the same command
goes on where it was ended; --again begins anew. Where anything else uses the machine it stops before the next cell, and nothing
is written: slots that share the processor with somebody else show the somebody else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))

from preview_gallery import screenshot

import stacks
from bench import load, matrix, report, results
from local import tiny, tools

ROOT = Path(__file__).resolve().parents[1]
SLOTS = (1, 2, 4, 8)
# Beyond so many cores in use by others, slots are not what is seen.
_BUSY_CORES = 0.3


@contextmanager
def ollama(program: Path, slots: int, folder: Path) -> Iterator[str]:
    """The real server with so many slots and the tiny model loaded; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NUM_PARALLEL": str(slots), "HOME": str(folder),
        "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_CONTEXT_LENGTH": "512",
        "OLLAMA_MAX_QUEUE": "512",
    }  # fmt: skip
    with (folder / f"serve-{slots}.log").open("wb") as log:
        process = subprocess.Popen([program, "serve"], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        if not (folder / "tiny.gguf").exists():
            tiny.write(folder / "tiny.gguf")
            # One thread: several wait for each other in turns, which on a shared machine is what would be measured.
            (folder / "Modelfile").write_text(f"FROM {folder / 'tiny.gguf'}\nPARAMETER num_thread 1\n")
            create = [program, "create", tiny.NAME, "-f", str(folder / "Modelfile")]
            subprocess.run(create, env=environment, check=True, capture_output=True, timeout=60)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measured(url: str, slots: int, given: argparse.Namespace, path: Path) -> results.Matrix:
    """One more cell of the matrix of Ollama with that many slots."""
    asked: list[int] = []
    target = load.Target(url=url, engine="ollama", model=tiny.NAME)
    lengths = {"prompt_tokens": stacks.Tokens(mean=16), "output_tokens": stacks.Tokens(mean=16)}

    def cell(batch: int, workers: int) -> results.Result:
        asked.append(batch)
        return load.run(
            target, stacks.Traffic(users=workers, **lengths), load.Settings(runs=1, max_seconds=given.cell_seconds),
            release=stacks.digest({"slots": slots}), stack="none", scenario=load.Scenario(requests=batch),
        )  # fmt: skip

    plan = matrix.Plan(
        batches=given.batches,
        workers=given.workers,
        forecasts=(50_000, 170_000),
        subject={"slots": slots, "url": "ollama"},
    )

    def say(text: str) -> None:
        if text.startswith("["):
            print(f"  {slots} slots {text}", flush=True)

    return matrix.measure(
        plan, path, cell, stack=f"ollama-{slots}", release=stacks.digest({"slots": slots}),
        traffic=stacks.Traffic(users=1, **lengths), say=say, stopped=lambda: bool(asked),
    )  # fmt: skip


def chosen(found: dict[int, results.Matrix]) -> results.Analysis | None:
    """Which number of slots is best: all cells with more workers than slots, as `tollgate tune` would see them."""
    samples = []
    for slots, one in found.items():
        for cell in one.cells:
            sample = matrix.sample_of(cell)
            if sample is not None and cell.workers >= max(found):
                samples.append(matrix.Sample(**{**sample.__dict__, "level": slots}))
    return matrix.analyse(samples, what="slots")


def page(found: dict[int, results.Matrix], picture: str = "") -> str:
    """All of it as one page of Markdown."""
    lines = [
        "# The matrix on the real Ollama",
        "",
        f"Ollama with a random model of a few megabytes, one thread, on {os.cpu_count()} processor cores; 16 tokens in, "
        "16 out. Made by `python benchmarks/load_ollama.py --markdown docs/benchmark-ollama.md`, which publishes nothing "
        "measured beside other work. Slots, queue and batching are Ollama's own; what a token costs is this machine's, and what "
        "several slots gain on a GPU cannot be seen here, where all share the processor. Slots take turns, cell by cell, so "
        "that what changes with the hour is no effect of theirs.",
    ]
    best = chosen(found)
    if best is not None:
        lines += ["", "## Slots", "", f"Over all batches with at least {max(SLOTS)} workers:", ""]
        lines += ["| slots | requests/s | 95 % | p95 end to end |", "|---|---|---|---|"]
        lines += [
            f"| {level.workers} | {level.requests_per_second:.3g} | {level.low:.3g} to {level.high:.3g} | "
            f"{level.e2e_p95_seconds or 0:.2f} s |"
            for level in best.levels
        ]
        sure = f"{best.optimal_confidence:.0%} sure that it is within 10 % of the best"
        lines += ["", f"Best: {best.optimal_workers} ({sure}). {best.because[:1].upper()}{best.because[1:]}."]
        lines += [f"- Warning: {text}." for text in best.warnings]
    for slots, one in found.items():
        lines += ["", f"## OLLAMA_NUM_PARALLEL={slots}", "", report.matrix_markdown(one).rstrip()]
    if picture:
        lines += ["", f"![The same matrices as the report shows them]({picture})"]
    return "\n".join(lines) + "\n"


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def quiet(seconds: float) -> float:
    """Cores in use by others, once nobody does or after so many seconds; our own servers are idle between cells."""
    until = time.monotonic() + seconds
    while (used := load.cores_in_use(0.5)) > _BUSY_CORES and time.monotonic() < until:
        pass
    return used


def measure_all(program: Path, given: argparse.Namespace, kept: Path, found: dict[int, results.Matrix]) -> str:
    """Every cell that is missing; why it ended early, or nothing."""
    cells, began = len(given.batches) * len(given.workers), time.monotonic()
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        urls = {slots: servers.enter_context(ollama(program, slots, Path(name))) for slots in SLOTS}
        # Cell by cell over all of them: what changes with the hour must not look like an effect of slots. Half as often again as
        # there are cells: one that does not count is measured once more.
        for _ in range(cells + cells // 2):
            for slots, url in urls.items():
                if slots in found and len(found[slots].cells) >= cells:
                    continue
                if time.monotonic() - began > given.budget:
                    return f"the {given.budget:.0f} s that it may take are over"
                used = quiet(10.0)
                if used > _BUSY_CORES and not given.anyway:
                    return f"something else uses {used:.1f} cores of this machine"
                found[slots] = measured(url, slots, given, kept / f"slots-{slots}.json")
    return ""


def main() -> None:
    """Print a matrix for each number of slots, and which number is best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=numbers, default=(150, 450))
    parser.add_argument("--workers", type=numbers, default=(1, 2, 4, 8, 16))
    parser.add_argument("--cell-seconds", type=float, default=7.0)
    parser.add_argument("--budget", type=float, default=330.0, help="seconds of one go; the next goes on")
    parser.add_argument("--json", type=Path, help="a folder for the matrices; what is there is gone on with")
    parser.add_argument("--again", action="store_true", help="forget what is there")
    parser.add_argument(
        "--anyway", action="store_true", help="measure on a busy machine too; --markdown is then refused"
    )
    parser.add_argument("--markdown", type=Path, help="write the page there, and a picture beside it")
    given = parser.parse_args()
    if given.anyway and given.markdown:
        parser.error("--anyway and --markdown: what a busy machine gives is not published")
    try:
        program = tools.path("ollama").resolve()
    except stacks.TollgateError as error:
        print(f"not measured: {error}")
        return
    kept: Path = given.json or ROOT / ".tollgate" / "ollama-matrix"
    if given.again and kept.exists():
        for file in kept.glob("slots-*.json*"):
            file.unlink()
    kept.mkdir(parents=True, exist_ok=True)
    found: dict[int, results.Matrix] = {}
    ended = measure_all(program, given, kept, found)
    text = page(found)
    print(text)
    (kept / "report.html").write_text(report.html([], matrices=list(found.values())))
    if ended:
        print(f"ended early: {ended}. What is finished is in {kept}; the same command goes on. Nothing was published.")
        raise SystemExit(1)
    if given.markdown:
        picture = given.markdown.with_suffix(".png")
        drawn = shutil.which("chromium") is not None
        if drawn:
            screenshot(kept / "report.html", picture, 1000)
        stacks.write_whole(given.markdown, page(found, picture.name if drawn or picture.exists() else ""))
        print(f"written: {given.markdown}")


if __name__ == "__main__":
    main()
