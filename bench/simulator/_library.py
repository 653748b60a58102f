"""Ollama's models: which are on disk, which are in GPU memory, for how long."""

from __future__ import annotations

import hashlib
import math
import time
from asyncio import TimerHandle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from ._answers import Kitchen
from ._message import Head
from ._options import Engine
from ._scheduler import Scheduler, clock
from ._timing import bits_per_weight, kv_bytes_per_token, parameters, quantization_of

if TYPE_CHECKING:
    from ._machine import Machine

PULL_SECONDS = 0.4
_STEPS = 5
Report = Callable[[dict[str, Any], bool], None]


def full_name(name: str) -> str:
    """A model's name with its tag, in lower case: `Gemma3` is `gemma3:latest`."""
    name = name.strip().lower()
    for prefix in ("registry.ollama.ai/", "library/"):
        name = name.removeprefix(prefix)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


STAMP = 30
_last = (0, "")


def stamp(at: float | None = None) -> str:
    """A time of the epoch (default: now) as Go prints it, nanoseconds, in UTC; always `STAMP` characters."""
    global _last
    now = time.time() if at is None else at
    second = int(now)
    if second != _last[0]:
        _last = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return f"{_last[1]}.{int((now - second) * 1e8):08d}1Z"


class Model:
    """One model on disk. `loaded`: in memory and ready. `asked`: the name as the client wrote it."""

    def __init__(self, name: str, library: Library) -> None:
        self.name = full_name(name)
        self.asked = name
        # How each line of a stream begins, up to the time.
        self.line = b'{"model":%b,"created_at":"' % orjson.dumps(name)
        self.library = library
        self.modified = time.time()
        self.digest = hashlib.sha256(self.name.encode()).hexdigest()
        self.quantization = quantization_of(self.name, "ollama")
        self.parameters = parameters(self.name)
        self.size = int(self.parameters * bits_per_weight(self.quantization) / 8)
        self.loaded = False
        self.loading: list[Callable[[], None]] = []
        self.timer: TimerHandle | None = None
        self.unload: TimerHandle | None = None
        self.keep_alive = library.options.keep_alive
        self.expires = math.inf
        self.used = 0.0
        self.told = 0.0
        self.told_alive = -1.0
        self.loads = 0
        self.scheduler: Scheduler
        self.kitchen: Kitchen

    def details(self) -> dict[str, Any]:
        """The part of a model's description that every list has."""
        family = "".join(c for c in self.name.partition(":")[0].rpartition("/")[2] if c.isalnum()) or "llama"
        level = self.quantization.replace("-", "_").upper().replace("Q4_K_M", "Q4_K_M")
        return {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": f"{self.parameters / 1e9:.1f}B",
            "quantization_level": level,
        }

    def card(self, *, running: bool = False) -> dict[str, Any]:
        """As `/api/tags` lists it, or `/api/ps` where it is in memory."""
        base = {"name": self.name, "model": self.name}
        if not running:
            return base | {
                "modified_at": stamp(self.modified),
                "size": self.size,
                "digest": self.digest,
                "details": self.details(),
            }
        options = self.library.options
        used = self.size + int(
            kv_bytes_per_token(self.name, options.kv_cache) * options.context_tokens * options.max_seqs
        )
        expires = (
            "2318-01-01T00:00:00.000000001Z"
            if math.isinf(self.expires)
            else stamp(time.time() + self.expires - clock())
        )
        return base | {
            "size": used,
            "digest": self.digest,
            "details": self.details(),
            "expires_at": expires,
            "size_vram": used,
            "context_length": options.context_tokens,
        }

    def description(self) -> dict[str, Any]:
        """As `/api/show` tells it."""
        details = self.details()
        family = details["family"]
        return {
            "license": "simulated",
            "modelfile": f"# simulated\nFROM {self.name}\n",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": details,
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": int(self.parameters),
                f"{family}.context_length": 131072,
                f"{family}.embedding_length": 2560,
            },
            "capabilities": ["completion", "tools"],
            "modified_at": stamp(self.modified),
        }

    def openai(self) -> dict[str, Any]:
        """As `/v1/models` lists it."""
        return {"id": self.name, "object": "model", "created": int(self.modified), "owned_by": "library"}


class Library:
    """All models of one server."""

    def __init__(self, machine: Machine, options: Engine, head: Head) -> None:
        self.machine = machine
        self.options = options
        self.head = head
        self.models: dict[str, Model] = {}
        self.clock = clock
        for name in options.models:
            self.add(name)

    def add(self, name: str) -> Model:
        """The model is on disk from now on."""
        model = Model(name, self)
        return self.models.setdefault(model.name, model)

    # Several workers are one server: what one does to a model, all do.

    def _tell(self, what: str, model: Model) -> None:
        keep_alive = -1.0 if math.isinf(model.keep_alive) else model.keep_alive
        self.machine.tell({"what": what, "model": model.asked, "keep_alive": keep_alive})

    def told(self, message: dict[str, Any]) -> None:
        """Another worker's news."""
        what, name = message["what"], str(message["model"])
        if what == "add":
            self.add(name)
            return
        model = self.models.get(full_name(name))
        if model is None:
            return
        if what == "delete":
            self.models.pop(model.name)
        if what in ("delete", "unload"):
            self._drop(model)
            return
        model.keep_alive = math.inf if message["keep_alive"] < 0 else float(message["keep_alive"])
        if model.loaded:
            self._renew(model)
        elif not model.loading:
            self._begin(model, None)

    def busy(self) -> bool:
        """Whether any request waits for a model or for tokens, in this worker or another."""
        return any(m.loading or (m.loaded and m.scheduler.everywhere) for m in self.models.values())

    def pull(self, name: str, report: Report) -> None:
        """Fetch a model: `report` gets each line of progress, the last with True. Takes `PULL_SECONDS`."""
        known = full_name(name) in self.models
        model = Model(name, self)
        layer = f"sha256:{model.digest}"
        total = model.size
        pause = 0.0 if known else PULL_SECONDS / self.options.sim.speed / (_STEPS + 1)
        loop = self.machine.loop

        def step(at: int) -> None:
            if at == 0:
                report({"status": "pulling manifest"}, False)
            elif at <= _STEPS:
                done = total if known else total * at // _STEPS
                report(
                    {"status": f"pulling {model.digest[:12]}", "digest": layer, "total": total, "completed": done},
                    False,
                )
            else:
                self._tell("add", self.add(name))
                for status in ("verifying sha256 digest", "writing manifest"):
                    report({"status": status}, False)
                report({"status": "success"}, True)
                return
            loop.call_later(pause, step, _STEPS if known and at == 0 else at + 1)

        step(0)

    def copy(self, source: Model, name: str) -> None:
        """The same model under another name."""
        made = self.add(name)
        made.parameters, made.quantization, made.size = source.parameters, source.quantization, source.size
        made.digest = source.digest
        self._tell("add", made)

    def delete(self, model: Model) -> None:
        """Remove a model from disk (and from memory)."""
        self.models.pop(model.name, None)
        self._tell("delete", model)
        self._drop(model)

    def load(self, model: Model, ready: Callable[[], None]) -> bool:
        """Call `ready` once the model is in memory; False where too many requests wait for it already."""
        if len(model.loading) >= max(1, self.options.max_queue):
            return False
        if model.timer is None:
            self._begin(model, ready)
            self._tell("load", model)
        else:
            model.loading.append(ready)
        return True

    def _begin(self, model: Model, ready: Callable[[], None] | None) -> None:
        if ready is not None:
            model.loading.append(ready)
        loaded = [m for m in self.models.values() if m.loaded]
        if len(loaded) >= self.options.max_loaded:
            self.expire(min(loaded, key=lambda m: m.used))
        sim = self.options.sim
        wait = sim.load_seconds if sim.load_seconds is not None else self.machine.timing(model.name).load_seconds
        model.timer = self.machine.loop.call_later(wait / sim.speed, self._loaded, model)

    def _loaded(self, model: Model) -> None:
        model.timer = None
        model.scheduler = self.machine.new_scheduler(model.name)
        model.scheduler.on_idle = lambda: self.touch(model)
        model.kitchen = self.machine.kitchen(model.asked, self.head, model.scheduler)
        model.loaded = True
        model.loads += 1
        waiting, model.loading = model.loading, []
        self._renew(model)
        for ready in waiting:
            ready()

    def touch(self, model: Model) -> None:
        """The model has been used: its time in memory begins anew."""
        now = clock()
        if now - model.told > min(0.5, model.keep_alive / 4) or model.keep_alive != model.told_alive:
            model.told, model.told_alive = now, model.keep_alive
            self._tell("use", model)
        self._renew(model)

    def _renew(self, model: Model) -> None:
        model.used = clock()
        if model.unload is not None:
            model.unload.cancel()
            model.unload = None
        if math.isinf(model.keep_alive):
            model.expires = math.inf
        else:
            model.expires = model.used + model.keep_alive
            model.unload = self.machine.loop.call_later(model.keep_alive, self._expired, model)

    def _expired(self, model: Model) -> None:
        model.unload = None
        # Where another worker still uses it, that one renews or ends the model's time.
        if model.loaded and not model.scheduler.everywhere:
            self.expire(model)

    def expire(self, model: Model) -> None:
        """Out of memory, now or when its last request is through."""
        if model.loaded:
            self._tell("unload", model)
        self._drop(model)

    def _drop(self, model: Model) -> None:
        if not model.loaded:
            return
        if model.scheduler.busy:
            model.keep_alive = 0.0
            return
        if model.unload is not None:
            model.unload.cancel()
            model.unload = None
        model.loaded = False
        model.scheduler.stop()
        model.keep_alive = self.options.keep_alive
