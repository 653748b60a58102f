"""The words of a batch: an input, what became of it, how far a batch is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

State = Literal["running", "paused", "cancelled", "done"]

# Where an input may be sent to: what OpenAI's batches allow, and Ollama's own.
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/api/chat",
    "/api/generate",
    "/api/embed",
)


class Input(NamedTuple):
    """One request as it will be sent. `path`: of the API; `body`: JSON, a few bytes to megabytes."""

    custom_id: str
    path: str
    body: bytes


class Item(NamedTuple):
    """An input of a queue. `seq`: its place in the input, from 0. `tries`: answered failures so far that were its own;
    `losses`: connections that broke with it in flight; `error`: the last of these in words."""

    seq: int
    custom_id: str
    path: str
    body: bytes
    tries: int = 0
    losses: int = 0


class Outcome(NamedTuple):
    """What became of an input, for ever. `status`: of HTTP, 0 where there was no answer. `error`: a code, empty for success.
    `body`: the answer, JSON where the server wrote JSON. `began`: epoch seconds of the last asking, `seconds`: how long that
    took. Tokens as the server counted them, 0 where it did not."""

    seq: int
    status: int
    error: str
    body: bytes
    endpoint: str
    began: float
    seconds: float
    tries: int
    tokens_in: int
    tokens_out: int


class Strike(NamedTuple):
    """A failure that an input survived; kept so that a killed runner's successor does not begin to count anew."""

    seq: int
    tries: int
    losses: int
    error: str


class Block(NamedTuple):
    """Inputs `first` to `last`, inclusive, that one runner leases and finishes as one."""

    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many inputs a batch has and what became of them; tokens of all answers."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def done(self) -> int:
        return self.ok + self.failed

    @property
    def left(self) -> int:
        return self.total - self.done


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a batch. `settings`: as given at submission (endpoints, prices, limits), for later runs. `created`,
    `ended`: epoch seconds, 0 where not yet. `busy`: seconds during which any runner worked on it. `reason`: why it is paused."""

    id: str
    state: State
    total: int
    created: float
    ended: float = 0.0
    busy: float = 0.0
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunnerReport:
    """What a runner last said of itself. `seen`: how many seconds ago; `alive`: as far as can be told from here."""

    owner: str
    seen: float
    alive: bool
    report: Mapping[str, Any]
