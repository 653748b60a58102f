"""`python -m bench job --config FILE` and `python -m bench batch BATCH …`: what the benchmark image runs."""

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
    runner = commands.add_parser("batch", help="work on a batch that others may work on as well")
    if (arguments or sys.argv[1:])[:1] == ["batch"]:
        # Imported late, as below.
        from .batch import runner_arguments, runner_main

        runner_arguments(runner)
        return runner_main(parser.parse_args(arguments))
    given = parser.parse_args(arguments)
    # Imported late: `--help` must not pay for the event loop and numpy.
    from .job import main as run_job

    return run_job(given.config, given.output, given.known)


if __name__ == "__main__":
    sys.exit(main())
