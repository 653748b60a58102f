"""The gate's own no, told apart from failures and wrong input by exit code 3.

TollgateError
└── GateRefused           exit code 3: the evidence does not admit the release
    └── EvidenceBroken    what is stored is not what was signed, or cannot be read: closed until that is repaired
"""

from __future__ import annotations

import stacks


class GateRefused(stacks.TollgateError):
    """The evidence does not admit the release. The text is the whole answer: why, the numbers, and what to do."""

    exit_code = 3


class EvidenceBroken(GateRefused):
    """An evidence file or the chain that it stands in is not what was signed. The gate is closed until that is repaired."""
