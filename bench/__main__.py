"""`python -m bench job --config FILE`: what the benchmark image runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure an LLM service.")
    commands = parser.add_subparsers(dest="command", required=True)
    job = commands.add_parser("job", help="run the benchmark that a config file describes (in a Kubernetes Job)")
    job.add_argument("--config", type=Path, default=Path("/etc/tollgate/bench.json"))
    job.add_argument("--output", type=Path, help="write the result here as well")
    job.add_argument("--known", metavar="EVIDENCE", help="valid evidence is there: say so, and measure nothing")
    given = parser.parse_args(arguments)
    # Imported late: `--help` must not pay for the event loop and numpy.
    from .job import main as run_job

    return run_job(given.config, given.output, given.known)


if __name__ == "__main__":
    sys.exit(main())
