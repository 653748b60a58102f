"""A `go` that builds nothing in milliseconds, and programs that only know their version."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# What it does is steered by files in the folder FAKE_GO: `pause` (seconds per package), `fail` (text on standard error
# instead of a program), `hold` (it goes on when that is removed); it writes each call to `calls`, one JSON list a line.
_GO = """#!{python} -IS
import json, os, sys, time
folder = os.environ["FAKE_GO"]
arguments = sys.argv[1:]
with open(folder + "/calls", "a") as calls:
    facts = {{"pid": os.getpid(), "arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)}}
    calls.write(json.dumps(facts) + chr(10))
def told(name, otherwise):
    path = folder + "/" + name
    return open(path).read() if os.path.exists(path) else otherwise
if arguments[0] == "version":
    print("go version go" + told("version", "1.26.8") + " linux/amd64")
elif arguments[0] == "list":
    if "Stale" in " ".join(arguments):
        print("errors", "internal/cpu", "example.org/a", "example.org/a/v2", "main", sep=chr(10))
    else:
        print("go: downloading example.org/a v1.2.3", file=sys.stderr)
elif arguments[0] == "mod":
    print(json.dumps({{"Dir": folder + "/module"}}))
elif arguments[0] == "build":
    os.makedirs(os.environ["GOCACHE"], exist_ok=True)
    out = arguments[arguments.index("-o") + 1]
    for package in ("errors", "internal/cpu", "example.org/a", "example.org/a/v2", "main"):
        print(package, file=sys.stderr, flush=True)
        time.sleep(float(told("pause", "0")))
        while os.path.exists(folder + "/hold"):
            time.sleep(0.02)
    failure = told("fail", "")
    if failure:
        sys.exit(failure)
    for package in arguments[arguments.index("-o") + 2 :]:
        parts = package.split("/")
        name = parts[-2] if parts[-1] in ("v2", "v3") else parts[-1]
        open(out + name, "w").write("#!/bin/sh" + chr(10) + "echo built" + chr(10))
"""


def program(folder: Path, name: str, says: str, code: int = 0, extra: str = "") -> Path:
    """An executable that prints `says` whatever it is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n# {extra}\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def fake_go(folder: Path) -> Path:
    """Put the fake `go` into `folder/bin`; returns that folder, to be PATH."""
    path = folder / "bin" / "go"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_GO.format(python=sys.executable))
    path.chmod(0o755)
    return path.parent


def calls(folder: Path, verb: str) -> list[dict[str, object]]:
    """The fake's calls with this first argument."""
    file = folder / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [call for call in map(json.loads, lines) if call["arguments"][0] == verb]
