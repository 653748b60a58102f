"""The figures of a soak as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def markdown(found: Mapping[str, Any]) -> str:
    """The page of a report, in Markdown."""
    load = " / ".join(f"{value:g}" for value in found["load_average"]) or "not sampled"
    faults = sum(row["faults"] for row in found["faults"].values())
    lost = sum(row["lost"] for row in found["requests"].values())
    answered = sum(sum(row["answered"].values()) for row in found["requests"].values())
    unexplained = sum(row["unexplained"] for row in found["requests"].values())
    lines = [
        f"{found['date']}, {found['machine']}, load average lowest / median / highest {load}.",
        "",
        f"{found['seconds']} s of load, {faults} faults: {answered} requests answered, {lost} lost in flight on what was killed,"
        f" {unexplained} unexplained.",
        "",
        *_table(
            ("fault", "times", "in flight", "lost", "healed, median s", "longest s"),
            (
                (
                    kind,
                    row["faults"],
                    row["in_flight"] or "",
                    row["lost"],
                    _of(statistics.median, row["healed_seconds"]),
                    _of(max, row["healed_seconds"]),
                )
                for kind, row in found["faults"].items()
            ),
        ),
        *_table(
            (
                "stack",
                "answered (short, stream, long)",
                "lost",
                "unexplained",
                "refused at the door",
                "longest wait there, s",
            ),
            (
                (
                    name,
                    ", ".join(str(count) for count in row["answered"].values()),
                    row["lost"],
                    row["unexplained"],
                    row["door"],
                    row["door_longest_seconds"],
                )
                for name, row in found["requests"].items()
            ),
        ),
        *_table(
            ("process", "starts", "first MiB", "last MiB", "MiB/h", "p", "flat"),
            (
                (
                    row["name"],
                    row["starts"],
                    f"{row['first']:.1f}",
                    f"{row['last']:.1f}",
                    f"{row['slope']:+.1f}",
                    f"{row['p']:.3f}",
                    {True: "yes", False: "NO", None: "too little seen"}[row["flat"]],
                )
                for row in found["memory"]
            ),
        ),
        *_table(("the gate was asked", "times"), found["gate"].items()),
        *(["Wrong:", "", *(f"- {words}" for words in found["wrong"])] if found["wrong"] else ["Nothing was wrong."]),
    ]
    return "\n".join(lines) + "\n"


def _of(which: Any, values: list[float]) -> str:
    return f"{which(values):.1f}" if values else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    cells = [head, tuple("---" for _ in head), *rows]
    return [*(f"| {' | '.join(str(cell) for cell in row)} |" for row in cells), ""]
