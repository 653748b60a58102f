"""The body of a project's `__main__.py`, the same in every project and on every stack."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pulumi

import stacks

# Tells the language host that the user has been told why.
_TOLD = 32


def run(root: Path) -> None:
    """Read the files of the selected stack below `root` and build its platform.

    A refusal or a broken file is the user's to read: it is logged without traceback, and the process ends.
    """
    import components

    try:
        # By the room's name: an evaluation puts a `deploy` there that does not ask the gate.
        components.deploy(pulumi.get_stack(), root)
    except stacks.TollgateError as error:
        # Leaving here, and not by an exception that the SDK knows, leaves nothing half-done: it would first register what
        # the program had asked for until then.
        pulumi.log.error(str(error))
        warnings.simplefilter("ignore", RuntimeWarning)  # What was asked for and is not awaited.
        sys.exit(_TOLD)
