"""The planner against published measurements. `python -m planner._published` writes docs/planner/measurements.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ._timing import Timing, timing_for

DOCS = Path(__file__).resolve().parents[1] / "docs" / "planner"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One measurement and what the uncalibrated planner says, in output tokens per second."""

    id: str
    what: str
    measured: float
    predicted: float
    source: str
    note: str

    @property
    def error(self) -> float:
        """Relative, signed: above 0 the planner promises too much."""
        return self.predicted / self.measured - 1


def comparisons(path: Path | None = None) -> tuple[Comparison, ...]:
    """All measurements of the file (default: docs/planner/measurements.yaml) with predictions."""
    loaded = yaml.safe_load((path or DOCS / "measurements.yaml").read_text(encoding="utf-8"))
    return tuple(_compare(entry) for entry in loaded)


def median_error(found: Sequence[Comparison]) -> float:
    """Median of the absolute relative errors."""
    errors = sorted(abs(item.error) for item in found)
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2


def replay(timing: Timing, prompts: Sequence[int], outputs: Sequence[int]) -> float:
    """Seconds from sending all requests at once to the last token, stepping as the engine does.

    A request of 0 output tokens is worked like one of 1: its prompt is read all the same.
    """
    running = [[prompt, max(1, output)] for prompt, output in zip(prompts, outputs, strict=True)]
    seconds = timing.prefill_seconds(sum(prompts), 0)
    for sequence in running:
        sequence[0] += 1
        sequence[1] -= 1
    running = [sequence for sequence in running if sequence[1] > 0]
    while running:
        context = sum(sequence[0] for sequence in running) / len(running)
        seconds += timing.decode_step_seconds(len(running), context)
        for sequence in running:
            sequence[0] += 1
            sequence[1] -= 1
        running = [sequence for sequence in running if sequence[1] > 0]
    return seconds


def _compare(entry: Mapping[str, Any]) -> Comparison:
    timing = timing_for(
        engine=entry["engine"],
        model=entry["model"],
        quantization=entry["quantization"],
        gpu=entry["gpu"],
        tensor=entry.get("tensor", 1),
    )
    how = entry["how"]
    if how == "decode":
        predicted = entry["together"] / timing.decode_step_seconds(entry["together"], entry["context"])
        load = f"decoding {entry['together']} at {entry['context']} tokens"
    elif how == "batch":
        each = timing.request_seconds(entry["together"], entry["prompt"], entry["output"])
        predicted = entry["together"] * entry["output"] / each
        load = f"{entry['together']} × {entry['prompt']} in, {entry['output']} out"
    else:
        predicted = sum(entry["outputs"]) / replay(timing, entry["prompts"], entry["outputs"])
        load = f"{len(entry['prompts'])} ShareGPT requests at once, {sum(entry['outputs'])} tokens out"
    split = f", tensor {entry['tensor']}" if entry.get("tensor", 1) > 1 else ""
    return Comparison(
        id=entry["id"],
        what=f"{entry['model']} {entry['quantization']}, {entry['engine']}, {entry['gpu']}{split}: {load}",
        measured=float(entry["tokens_per_second"]),
        predicted=predicted,
        source=entry["source"],
        note=entry.get("note", ""),
    )


def document(found: Sequence[Comparison]) -> str:
    """The table as Markdown, worst last."""
    ordered = sorted(found, key=lambda item: abs(item.error))
    worst = ordered[-1]
    lines = [
        "# Predictions against published measurements",
        "",
        "Output tokens per second. The planner is uncalibrated here: no constant was chosen on any of these rows (Ollama's",
        "two fitted constants come from the L4 case of the design). Written by `python -m planner._published` from",
        "`measurements.yaml`, where each row's load stands in full.",
        "",
        f"{len(found)} measurements; median absolute error {median_error(found):.1%}, worst {worst.error:+.0%}.",
        "",
        "| measurement | measured | predicted | error | source |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {item.what} | {item.measured:,.1f} | {item.predicted:,.1f} | {item.error:+.0%} | {_link(item.source)} |"
        for item in ordered
    ]
    notes = [f"- `{item.id}`: {item.note}." for item in ordered if item.note]
    lines += ["", "Notes", "", *notes, ""]
    return "\n".join(lines)


def _link(source: str) -> str:
    url, _, rest = source.partition(" ")
    return f"[{url.removeprefix('https://').split('/')[0]}]({url}) {rest}".strip()


if __name__ == "__main__":
    (DOCS / "measurements.md").write_text(document(comparisons()), encoding="utf-8")
