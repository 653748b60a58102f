"""The errors a user may see.

TollgateError            exit code 1: the work failed
├── InputError           exit code 2: what was given is wrong; nothing was done
└── GateRefused          exit code 3: the gate said no (lives in `gate`)
"""

from __future__ import annotations


class TollgateError(Exception):
    """Work that failed for a reason the user can act on; printed without a traceback."""

    exit_code = 1


class InputError(TollgateError):
    """Input that cannot be used.

    Attributes: `where` (file and key, or option), `got`, `allowed`, `fix`: one line each, shown in this order.
    """

    exit_code = 2

    def __init__(self, *, where: str, got: str, allowed: str, fix: str) -> None:
        self.where, self.got, self.allowed, self.fix = where, got, allowed, fix
        super().__init__(f"{where}\n  got:     {got}\n  allowed: {allowed}\n  fix:     {fix}")
