"""Several processes on one address: the kernel spreads the connections, each worker has its part of the slots."""

from __future__ import annotations

from ._options import Engine
from ._server import Process


def run(options: Engine) -> int:
    """Serve with `options.sim.workers` processes until told to stop."""
    return Process(options).run()
