"""A runner as a process that can be killed: `python runner_process.py STORE ID URL SLOTS [SHARD]`.

With `--many` it starts such a process for each line that it reads and prints its number: forked, so that it is at work within
milliseconds and a test can kill fifty of them.
"""

from __future__ import annotations

import os
import signal
import sys

from bench import batch
from bench.batch import _shard

# Often, so that tests need not wait for a checkpoint.
_shard._SHIP_SECONDS = _shard._ASK_SECONDS = 0.5


def work(store: str, name: str, url: str, slots: str, shard: str = "") -> None:
    ending = batch.run(
        batch.open_queue(store, name),
        [batch.EndpointSettings(url=url, slots=int(slots), fixed=True)],
        batch.RunSettings(grace=30.0),
        only=int(shard) if shard else None,
    )
    print(ending.state, ending.counts.ok, ending.counts.failed, flush=True)


if sys.argv[1] == "--many":
    # Nobody waits for the killed: the kernel removes them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            work(*sys.argv[2:])
            os._exit(0)
        print(child, flush=True)
else:
    work(*sys.argv[1:])
