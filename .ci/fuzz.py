"""Feed hostile input to everything that reads some, for so many seconds each: what tests/attack/fuzz names.

    python .ci/fuzz.py [--seconds 600] [--folder FOLDER] [GROUP …]

An input is taken or refused in clear words (TollgateError); any other exception, 5 s of processor time or 500 MB for one input
are findings, of which one of each kind is kept in FOLDER with its traceback. Exit status 1 where there are any. Guided by
coverage where atheris is installed (Linux on x86-64), by mutation of valid files alone elsewhere. FOLDER also keeps what
reached new code, to begin with the next time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["bench", "components", "gate", "local", "planner", "preview", "stacks", "tollgate", "values"]
# Of one input, before libFuzzer itself gives up on it; the targets' own bounds are tighter.
HANG_SECONDS = 60
MORE_MB = 700


class Harness:
    """One group's targets, and what was found. An input is the target's name, a line break, and what that target gets."""

    def __init__(self, group: str, folder: Path) -> None:
        from tests.attack.fuzz import GROUPS

        self.scratch = tempfile.TemporaryDirectory()
        self.targets = {target.name: target for target in GROUPS[group](Path(self.scratch.name))}
        self.corpus, self.findings, self.stats = folder / "corpus", folder / "findings", folder / "stats.json"
        for path in (self.corpus, self.findings):
            path.mkdir(parents=True, exist_ok=True)
        self.seeds = [b"%b\n%b" % (name.encode(), seed) for name, one in self.targets.items() for seed in one.seeds]
        self.runs = dict.fromkeys(self.targets, 0)
        self.found: dict[str, int] = {}
        self.began = self.told = time.monotonic()

    def one(self, data: bytes) -> None:
        """Try one input."""
        name, _, payload = data.partition(b"\n")
        target = self.targets.get(name.decode(errors="replace"))
        if target is None:
            return
        self.runs[target.name] += 1
        said = target.attempt(payload)
        if said:
            self._keep(target.name, data, said)
        if time.monotonic() - self.told > 1:
            self.tell()

    def mutant(self, data: bytes, draw: random.Random) -> bytes:
        """Another input for the same target."""
        name, _, payload = data.partition(b"\n")
        target = self.targets.get(name.decode(errors="replace"))
        if target is None:
            return draw.choice(self.seeds)
        return name + b"\n" + target.mutant(payload, draw)

    def tell(self) -> None:
        """Write down how far it is: who fuzzes may be ended at any time."""
        self.told = time.monotonic()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        about = {"seconds": self.told - self.began, "peak_mb": peak, "runs": self.runs, "findings": self.found}
        self.stats.write_text(json.dumps(about))

    def _keep(self, name: str, data: bytes, said: str) -> None:
        """One input of each kind of finding: the last place of ours that the traceback names, and the error."""
        places = re.findall(rf'File "{re.escape(str(ROOT))}/((?:{"|".join(ROOMS)})/\S+)", line (\d+)', said)
        kind = f"{name} {places[-1] if places else ''} {said.strip().splitlines()[-1].partition(':')[0][:60]}"
        new = kind not in self.found
        self.found[kind] = self.found.get(kind, 0) + 1
        if new:
            stem = hashlib.sha256(kind.encode()).hexdigest()[:12]
            (self.findings / f"{stem}.input").write_bytes(data)
            (self.findings / f"{stem}.txt").write_text(f"{kind}\n{said}", errors="replace")
            print(f"  found: {kind}", flush=True)


def child(group: str, seconds: int, folder: Path) -> None:
    """Fuzz one group in this process."""
    sys.path.insert(0, str(ROOT))
    try:
        import atheris
    except ImportError:
        _without(Harness(group, folder), seconds)
        return
    with atheris.instrument_imports(include=ROOMS):
        harness = Harness(group, folder)
        for seed in harness.seeds:
            # Also what is imported only when it is needed.
            harness.one(seed)
    for seed in harness.seeds:
        (harness.corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return harness.mutant(data, draw)[:most]

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    options = [
        f"-max_total_time={seconds}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={peak + MORE_MB}", "-max_len=65536",
        "-print_final_stats=1", f"-artifact_prefix={harness.findings}/", str(harness.corpus),
    ]  # fmt: skip
    harness.began = time.monotonic()
    once: Callable[[bytes], None] = harness.one
    atheris.Setup([sys.argv[0], *options], once, custom_mutator=mutate)
    atheris.Fuzz()


def _without(harness: Harness, seconds: int) -> None:
    draw = random.Random(0)
    while time.monotonic() < harness.began + seconds:
        data = draw.choice(harness.seeds)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data = harness.mutant(data, draw)
        harness.one(data)
    harness.tell()


def main() -> int:
    """See the module."""
    if sys.argv[1:2] == ["--child"]:
        # Before anything of ours is imported: what is imported already cannot be watched any more.
        group, seconds, folder = sys.argv[2:]
        child(group, int(seconds), Path(folder))
        return 0
    sys.path.insert(0, str(ROOT))
    from tests.attack.fuzz import GROUPS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; default: all, one after the other"
    )
    parser.add_argument("--seconds", type=int, default=600, help="for each group (default: 600)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".tollgate" / "fuzz", help="for corpora and findings")
    given = parser.parse_args()
    if unknown := sorted(set(given.groups) - set(GROUPS)):
        parser.error(f"got {', '.join(unknown)}; allowed: {', '.join(GROUPS)}")
    return 1 if sum([_group(name, given.seconds, given.folder / name) for name in given.groups or GROUPS]) else 0


def _group(name: str, seconds: int, folder: Path) -> int:
    """Run one group in a process of its own; the number of its findings."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, __file__, "--child", name, str(seconds), str(folder)]
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    about: dict[str, Any] = json.loads((folder / "stats.json").read_text()) if (folder / "stats.json").exists() else {}
    runs: dict[str, int] = about.get("runs", {})
    crashes = [path.name for path in (folder / "findings").glob("*-*")]
    each = ", ".join(f"{target} {count:,}" for target, count in runs.items())
    print(
        f"{name}: {sum(runs.values()):,} inputs in {about.get('seconds', 0):.0f} s ({each}), "
        f"{len(list((folder / 'corpus').iterdir()))} in the corpus, at most {about.get('peak_mb', 0)} MB, "
        f"{len(about.get('findings', {}))} kinds of findings{f', ended by {crashes} ({ended})' if ended else ''}",
        flush=True,
    )
    for kind, count in about.get("findings", {}).items():
        print(f"  {count} x {kind}")
    return len(about.get("findings", {})) + (ended != 0)


if __name__ == "__main__":
    sys.exit(main())
