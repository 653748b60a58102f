"""`python -m bench batch`: a runner in a pod, for as many pods as a Job has."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time

import stacks

from ._forecast import Prices
from ._formats import Recipe, read
from ._metrics import Metrics
from ._progress import Progress, RunSettings
from ._results import write
from ._runner import run
from ._status import of_progress, text
from ._stores import create, ids, is_bucket, open_queue
from ._wire import EndpointSettings, endpoint_words

_SAY_EVERY = 10
# Pods other than the first leave the submission to it for so long.
_AWAIT_SECONDS = 120.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("batch", help="its id")
    parser.add_argument(
        "--store", default=os.environ.get("TOLLGATE_BATCHES", ""), help="postgresql://…, s3://…, gs://… or a folder"
    )
    parser.add_argument("--endpoint", action="append", default=[], help="URL[,slots=N,…]; repeatable")
    parser.add_argument("--input", help="submit this first, unless the batch is there; one pod of an Indexed Job does")
    parser.add_argument("--model", help="with --input: asked for instead of what the inputs say")
    parser.add_argument("--template", help="with --input: the prompt of each row")
    parser.add_argument("--output", help="when all is done, write the answers there")
    parser.add_argument("--errors", help="and the failures there")
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--grace", type=float, default=20.0, help="seconds for what is in flight when told to stop")
    parser.add_argument("--shards", type=int, default=1, help="with --input, in a bucket: into so many parts")
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    parser.add_argument(
        "--shard", type=int, default=int(index) if index.isdigit() else None, help="of a bucket: this one"
    )
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus' metrics there, at $POD_IP or 127.0.0.1")


def main(given: argparse.Namespace) -> int:
    """Exit code: 0 done or cancelled, 1 paused or failed, 2 wrong input, 143 told to stop: start it again."""
    try:
        return _main(given)
    except stacks.TollgateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _main(given: argparse.Namespace) -> int:
    if not given.store:
        raise stacks.InputError(where="--store", got="nothing", allowed="postgresql://… or a folder", fix="name it")
    words = [endpoint_words(one) for one in given.endpoint]
    if given.input and not _is_there(given):
        recipe = Recipe(model=given.model, template=given.template)
        try:
            create(
                given.store, read(given.input, recipe), id=given.batch, source=given.input, shards=given.shards
            ).close()
        except stacks.TollgateError:
            # Another pod was faster: then the batch is there now.
            if given.batch not in ids(given.store):
                raise
    queue = open_queue(given.store, given.batch)
    info = queue.info()
    if info.state not in ("done", "cancelled"):
        key = os.environ.get("TOLLGATE_API_KEY", "")
        endpoints = [EndpointSettings(url=one.pop("where"), api_key=key, **one) for one in words]
        settings = RunSettings(
            tries=given.tries, timeout=given.timeout, grace=given.grace,
            prices=Prices(**(info.settings.get("prices") or {})),
        )  # fmt: skip
        said, metrics = 0, Metrics(queue.id)

        def say(progress: Progress) -> None:
            nonlocal said
            metrics.tell(progress)
            said += 1
            if said % _SAY_EVERY == 1:
                print("\n".join(text(of_progress(info, progress))), flush=True)

        with contextlib.ExitStack() as stack:
            if given.metrics_port is not None:
                stack.enter_context(metrics.served(os.environ.get("POD_IP") or "127.0.0.1", given.metrics_port))
            ending = run(queue, endpoints, settings, progress=say, only=given.shard if is_bucket(given.store) else None)
        print(
            f"{queue.id}  {ending.state}: {ending.counts.ok} answered, {ending.counts.failed} failed; asked {ending.asked}"
        )
        if ending.stopped or ending.state == "running":
            return 143
        if ending.state == "paused":
            raise stacks.TollgateError(f"batch {queue.id} is paused: {ending.reason}")
    if given.output and queue.info().state == "done":
        write(queue, given.output, given.errors)
    return 0


def _is_there(given: argparse.Namespace) -> bool:
    """Whether the batch has been submitted. All pods of a Job begin at once; one of them reads the input."""
    end = time.monotonic() + (_AWAIT_SECONDS if given.shard else 0.0)
    while given.batch not in ids(given.store):
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True
