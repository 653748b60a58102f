"""The Pulumi program, the same on every stack: read the stack's files, build its platform."""

import sys
import warnings
from pathlib import Path

import pulumi

import stacks
from components import deploy

# Tells the language host that the user has been told why.
_TOLD = 32

try:
    deploy(pulumi.get_stack(), Path(__file__).resolve().parent)
except stacks.TollgateError as error:
    # A refusal or a broken file is the user's to read, without traceback. Leaving here, and not by an exception that the SDK
    # knows, leaves nothing half-done: it would first register what the program had asked for until then.
    pulumi.log.error(str(error))
    warnings.simplefilter("ignore", RuntimeWarning)  # What was asked for and is not awaited.
    sys.exit(_TOLD)
