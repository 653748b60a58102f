"""Results as files: OpenAI's Batch output, with what it does not say (who answered, how long it took) under a key of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import orjson

from ._files import writing
from ._forecast import Prices
from ._model import Outcome
from ._queue import Queue


def lines(queue: Queue, *, failed: bool, prices: Prices | None = None) -> Iterator[bytes]:
    """A line of JSON for each answer, or for each failure, in the order of the input.

    What the hours cost is shared out by the time that each answer took, what tokens cost stands for itself.
    """
    second = 0.0
    if prices is not None and prices.per_hour is not None and (seconds := queue.seconds()):
        second = prices.cost(queue.info().busy / 3600, 0, 0) / seconds
    for custom_id, *values in queue.results(failed=failed):
        yield _line(queue.id, custom_id, Outcome(*values), prices, second)


def _line(batch: str, custom_id: str, outcome: Outcome, prices: Prices | None, second: float) -> bytes:
    id = f"{batch}_{outcome.seq}"
    ours = {
        "endpoint": outcome.endpoint, "began": round(outcome.began, 3), "seconds": round(outcome.seconds, 6),
        "tries": outcome.tries, "tokens_in": outcome.tokens_in, "tokens_out": outcome.tokens_out,
    }  # fmt: skip
    if prices is not None and prices.known:
        tokens = prices.cost(0.0, outcome.tokens_in, outcome.tokens_out)
        ours["cost_usd"] = round(tokens + second * outcome.seconds, 9)
    response = error = b"null"
    if outcome.status:
        head = orjson.dumps({"status_code": outcome.status, "request_id": id})[:-1]
        response = b"%b,%b%b}" % (head, b'"body":', _json(outcome.body, 0 if outcome.error else outcome.status))
    if outcome.error:
        message = orjson.loads(outcome.body) if not outcome.status and _is_json(outcome.body) else ""
        error = orjson.dumps({"code": outcome.error, "message": message})
    return b'{"id":%b,"custom_id":%b,"response":%b,"error":%b,"tollgate":%b}\n' % (
        orjson.dumps(id), orjson.dumps(custom_id), response, error, orjson.dumps(ours),
    )  # fmt: skip


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def _json(body: bytes, status: int) -> bytes:
    """The body as JSON on one line: as it is where it is that already, as a string where it is no JSON at all."""
    # Answers are kept only when they have been parsed; a line break in JSON stands between its parts and not in a text.
    if status == 200 and b"\n" not in body and b"\r" not in body:
        return body
    try:
        return orjson.dumps(orjson.loads(body))
    except orjson.JSONDecodeError:
        return orjson.dumps(body.decode(errors="replace"))


def write(queue: Queue, output: str, errors: str | None = None, *, prices: Prices | None = None) -> tuple[int, int]:
    """Write the answers to `output` and the failures to `errors` (files, `-`, s3:// or gs://); how many of each.

    Each file appears whole or not at all. Raises TollgateError where it cannot be written.
    """

    def fill(file: IO[bytes], *, failed: bool) -> int:
        number = 0
        for line in lines(queue, failed=failed, prices=prices):
            file.write(line)
            number += 1
        return number

    with writing(output) as file:
        good = fill(file, failed=False)
    if errors is None:
        return good, queue.counts().failed
    with writing(errors) as file:
        return good, fill(file, failed=True)
