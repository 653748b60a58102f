"""What of a soak is not as it must be: each lost request against the faults, and the faults against their time to heal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ._load import Lost

# Clocks are read a little before a connection is made and a little after it breaks.
SLACK_SECONDS = 1.0
# How long a killed process's socket may take to be reported to who waits on it.
BREAK_SECONDS = 5.0


@dataclass(kw_only=True)
class Fault:
    """One fault. `stack`: whose processes it kills, empty where it kills none that serve; `flying`: that stack's requests in
    flight from `at` until they were surely dead, at `dead`; `healed`: when all was as before. Seconds of the run.
    """

    at: float
    kind: str
    target: str
    stack: str = ""
    flying: int = 0
    dead: float | None = None
    healed: float | None = None
    wrong: list[str] = field(default_factory=list)

    def explains(self, lost: Lost) -> bool:
        """Whether that request was in flight on what this fault killed, as far as times can tell."""
        if lost.stack != self.stack:
            return False
        dead = self.at if self.dead is None else self.dead
        return lost.sent <= dead + SLACK_SECONDS and self.at - SLACK_SECONDS <= lost.failed <= dead + BREAK_SECONDS


def classify(lost: Iterable[Lost], faults: Sequence[Fault]) -> tuple[dict[int, list[Lost]], list[Lost]]:
    """Lost requests by the index of the fault that they died of, the nearest before their end, and those without one."""
    by_fault: dict[int, list[Lost]] = {}
    unexplained = []
    for one in lost:
        causes = [index for index, fault in enumerate(faults) if fault.explains(one)]
        if causes:
            by_fault.setdefault(max(causes, key=lambda index: faults[index].at), []).append(one)
        else:
            unexplained.append(one)
    return by_fault, unexplained


def wrongs(lost: Iterable[Lost], faults: Sequence[Fault], heal_seconds: float) -> list[str]:
    """In words: requests that no fault explains, more lost by one fault than it had in flight, faults that did not heal."""
    by_fault, unexplained = classify(lost, faults)
    found = [
        f"unexplained: a {one.kind} request to {one.stack} sent at {one.sent:.1f} s was lost at {one.failed:.1f} s ({one.why})"
        for one in unexplained
    ]
    for index, those in by_fault.items():
        fault = faults[index]
        if len(those) > fault.flying:
            found.append(
                f"{fault.kind} at {fault.at:.0f} s: {len(those)} requests lost, but only {fault.flying} were in flight"
            )
    for fault in faults:
        found += [f"{fault.kind} at {fault.at:.0f} s: {words}" for words in fault.wrong]
        if fault.healed is None:
            found.append(
                f"{fault.kind} at {fault.at:.0f} s ({fault.target}) has not healed within {heal_seconds:.0f} s"
            )
    return found
