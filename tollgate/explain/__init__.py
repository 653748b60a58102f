"""One value from the stack file to the running pod: every step, what it is there, and where that is written."""

from ._live import Live, live
from ._trace import Step, trace

__all__ = ["Live", "Step", "live", "trace"]
