"""The Pulumi program, the same on every stack: read the stack's files, build its platform."""

from pathlib import Path

from components import run

run(Path(__file__).resolve().parent)
