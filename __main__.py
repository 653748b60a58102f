"""The Pulumi program, the same on every stack: read the stack's files, build its platform."""

from pathlib import Path

import pulumi

import stacks
from components import deploy

try:
    deploy(pulumi.get_stack(), Path(__file__).resolve().parent)
except stacks.TollgateError as error:
    # A refusal or a broken file is the user's to read, not a traceback.
    raise pulumi.RunError(str(error)) from None
