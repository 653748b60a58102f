"""OpenAI's Batch API over our batches: the official client uploads a file, makes a batch of it, and downloads the results.

What it deliberately does not do: uploads in parts, files for other purposes than batches, more than one batch at a time (they
take turns in the order in which they were made, as they would share the same endpoints anyway).
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

import stacks

from ._formats import BadRow, Recipe, read
from ._model import PATHS, Counts, Input
from ._progress import RunSettings
from ._queue import Queue
from ._results import lines
from ._runner import run
from ._stores import create, ids, open_queue
from ._wire import EndpointSettings

_WINDOWS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_METADATA = 16
_AGAIN_SECONDS = 5.0


class Wrong(Exception):
    """A request that cannot be served. `status`: of HTTP."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        self.status, self.message, self.param = status, message, param
        super().__init__(message)


class Files:
    """Uploaded and written files in a folder: the bytes, and beside them what is said of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, id: str) -> Path:
        """Where its bytes are. Raises Wrong where there is no such file."""
        if not id.startswith("file-") or not _plain(id[5:].replace("-", "").replace("_", "")):
            raise Wrong(404, f"No such File object: {id}", "id")
        path = self.folder / id
        if not path.with_suffix(".json").exists():
            raise Wrong(404, f"No such File object: {id}", "id")
        return path

    def get(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.path(id).with_suffix(".json").read_bytes())
        return found

    def add(self, bytes_from: Path, filename: str, purpose: str, id: str = "") -> dict[str, Any]:
        """Take over that file."""
        id = id or f"file-{secrets.token_hex(12)}"
        found = {
            "id": id, "object": "file", "bytes": bytes_from.stat().st_size, "created_at": int(time.time()),
            "filename": filename, "purpose": purpose, "status": "processed",
        }  # fmt: skip
        bytes_from.rename(self.folder / id)
        _write(self.folder / f"{id}.json", found)
        return found

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        found = [orjson.loads(path.read_bytes()) for path in self.folder.glob("file-*.json")]
        return sorted(found, key=lambda one: (-one["created_at"], one["id"]))

    def delete(self, id: str) -> None:
        path = self.path(id)
        path.with_suffix(".json").unlink()
        path.unlink(missing_ok=True)


def _plain(name: str) -> bool:
    """Whether it may be part of the name of a file: none is longer than 255 bytes."""
    return name.isascii() and name.isalnum() and len(name) <= 100


def _write(path: Path, value: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{threading.get_ident()}")
    aside.write_bytes(orjson.dumps(value))
    aside.replace(path)


class Batches:
    """The batches as the API knows them: a record each, whose queue (once it has been validated) has the counts."""

    def __init__(self, folder: Path, endpoints: Sequence[EndpointSettings], settings: RunSettings) -> None:
        self._folder, self._endpoints = folder, endpoints
        # Nobody sits before it: it goes on for as long as its window is open, and lists what failed.
        self._settings = replace(settings, stop_after=0, patience=math.inf)
        self.files = Files(folder / "files")
        self._records = folder / "api"
        self._records.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="batch service", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let what is in flight finish; what is left goes on at the next start."""
        self._over.set()
        self._wake.set()
        self._thread.join(60)

    # --- what clients ask for

    def create(self, given: Any) -> dict[str, Any]:
        """Raises Wrong for a request that is none."""
        if not isinstance(given, dict):
            raise Wrong(400, "The body must be a JSON object")
        if given.get("endpoint") not in PATHS:
            raise Wrong(400, f"endpoint must be one of {', '.join(PATHS)}", "endpoint")
        seconds = _window(given.get("completion_window"))
        metadata = given.get("metadata") or {}
        if not isinstance(metadata, dict) or len(metadata) > _MOST_METADATA:
            raise Wrong(400, f"metadata must be at most {_MOST_METADATA} pairs of text", "metadata")
        file = self.files.get(str(given.get("input_file_id")))
        if file["purpose"] != "batch":
            raise Wrong(400, "The input file must have been uploaded for the purpose batch", "input_file_id")
        now = time.time()
        record = {
            "id": f"batch_{secrets.token_hex(12)}", "endpoint": given["endpoint"], "input_file_id": file["id"],
            "completion_window": given["completion_window"], "metadata": metadata, "created_at": int(now),
            "expires_at": int(now + seconds), "order": now,
        }  # fmt: skip
        _write(self._records / f"{record['id']}.json", record)
        self._wake.set()
        return self.show(record)

    def record(self, id: str) -> dict[str, Any]:
        """Raises Wrong where there is none."""
        path = self._records / f"{id}.json"
        if not id.startswith("batch_") or not _plain(id[6:]) or not path.exists():
            raise Wrong(404, f"No batch found with id '{id}'", "batch_id")
        found: dict[str, Any] = orjson.loads(path.read_bytes())
        return found

    def all(self) -> list[dict[str, Any]]:
        """All records, the newest first."""
        found = [orjson.loads(path.read_bytes()) for path in self._records.glob("batch_*.json")]
        return sorted(found, key=lambda one: -one["order"])

    def cancel(self, id: str) -> dict[str, Any]:
        """Raises Wrong where it has ended."""
        with self._lock:
            record = self.record(id)
            if _ended(record):
                raise Wrong(409, f"Cannot cancel a batch with status '{_ended(record)}'.")
            record = self._update(record, cancelling_at=int(time.time()))
            with contextlib.suppress(stacks.TollgateError), self._queue(id) as queue:
                queue.set_state("cancelled")
        self._wake.set()
        return self.show(record)

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        """As the API says it."""
        counts = Counts()
        state = ""
        if record["id"] in ids(str(self._folder)):
            with self._queue(record["id"]) as queue:
                counts, state = queue.counts(), queue.info().state
        status = _ended(record)
        if not status:
            status = "cancelling" if record.get("cancelling_at") else "validating" if not state else "in_progress"
            status = "finalizing" if state == "done" else status
        times = (
            "in_progress_at",
            "finalizing_at",
            "completed_at",
            "failed_at",
            "expired_at",
            "cancelling_at",
            "cancelled_at",
        )
        return {
            "object": "batch",
            **{key: record[key] for key in ("id", "endpoint", "input_file_id", "completion_window", "created_at", "expires_at")},
            "metadata": record["metadata"], "status": status,
            "errors": {"object": "list", "data": record["errors"]} if record.get("errors") else None,
            **{key: record.get(key) for key in ("output_file_id", "error_file_id", *times)},
            "request_counts": {"total": counts.total, "completed": counts.ok, "failed": counts.failed},
            "usage": {
                "input_tokens": counts.tokens_in, "output_tokens": counts.tokens_out,
                "total_tokens": counts.tokens_in + counts.tokens_out,
                "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
            },
        }  # fmt: skip

    @contextlib.contextmanager
    def _queue(self, id: str) -> Iterator[Queue]:
        queue = open_queue(str(self._folder), id)
        try:
            yield queue
        finally:
            queue.close()

    def _update(self, record: dict[str, Any], **fields: Any) -> dict[str, Any]:
        found = {**record, **fields}
        _write(self._records / f"{record['id']}.json", found)
        return found

    # --- the work

    def _work(self) -> None:
        while not self._over.is_set():
            waiting = [record for record in reversed(self.all()) if not _ended(record)]
            if not waiting:
                self._wake.wait(_AGAIN_SECONDS)
                self._wake.clear()
                continue
            try:
                self._advance(waiting[0])
            except (stacks.TollgateError, OSError):
                # The disk is full, an endpoint has another certificate: it may be mended, and nothing is lost meanwhile.
                self._wake.wait(_AGAIN_SECONDS)
                self._wake.clear()

    def _advance(self, record: dict[str, Any]) -> None:
        id = record["id"]
        if id not in ids(str(self._folder)):
            if record.get("cancelling_at"):
                self._update(record, cancelled_at=int(time.time()))
                return
            if not self._validated(record):
                return
        with self._queue(id) as queue:
            with self._lock:
                record = self.record(id)
                if record.get("cancelling_at"):
                    queue.set_state("cancelled")
                elif not record.get("in_progress_at"):
                    record = self._update(record, in_progress_at=int(time.time()))
            expires = float(record["expires_at"])
            if queue.info().state == "running":
                run(
                    queue, self._endpoints, self._settings, signals=False,
                    stop=lambda: self._over.is_set() or time.time() > expires,
                )  # fmt: skip
            state = queue.info().state
            if state == "running" and time.time() <= expires:
                return
            expired = state == "running"
            if expired:
                queue.set_state("cancelled", reason="expired")
            self._finish(queue, id, "expired" if expired else "completed" if state == "done" else "cancelled")

    def _validated(self, record: dict[str, Any]) -> bool:
        try:
            path = self.files.path(record["input_file_id"])
            recipe = Recipe(path=record["endpoint"])
            rows = enumerate(read(str(path), recipe, "jsonl"), 1)
            found = (_checked(given, record["endpoint"], number) for number, given in rows)
            create(str(self._folder), found, id=record["id"], source="input file").close()
        except (stacks.InputError, Wrong) as error:
            words = (
                f"{error.where}: {error.got}; allowed: {error.allowed}"
                if isinstance(error, stacks.InputError)
                else str(error)
            )
            line = error.where.rpartition("line ")[2] if isinstance(error, stacks.InputError) else ""
            said = {
                "code": "invalid_request",
                "message": words,
                "param": None,
                "line": int(line) if line.isdigit() else None,
            }
            self._update(record, errors=[said], failed_at=int(time.time()))
            return False
        return True

    def _finish(self, queue: Queue, id: str, ending: str) -> None:
        with self._lock:
            record = self._update(self.record(id), finalizing_at=int(time.time()))
        outputs = {}
        for failed, key in ((False, "output_file_id"), (True, "error_file_id")):
            aside = self.files.folder / f".{id}-{key}"
            with aside.open("wb") as file:
                file.writelines(lines(queue, failed=failed))
                if failed and ending == "expired":
                    file.writelines(_expired(queue))
            if aside.stat().st_size:
                made = self.files.add(
                    aside, f"{id}_{'error' if failed else 'output'}.jsonl", "batch_output", f"file-{id[6:]}-{key[0]}"
                )
                outputs[key] = made["id"]
            aside.unlink(missing_ok=True)
        with self._lock:
            self._update(record, **outputs, **{f"{ending}_at": int(time.time())})


def _checked(given: Input | BadRow, endpoint: str, number: int) -> Input | BadRow:
    if isinstance(given, Input) and given.path != endpoint:
        return BadRow(number, f"url {given.path} in {given.custom_id}", f"the batch's endpoint {endpoint}")
    return given


def _expired(queue: Queue) -> Iterator[bytes]:
    for custom_id in queue.unanswered():
        error = {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
        yield orjson.dumps({"id": None, "custom_id": custom_id, "response": None, "error": error}) + b"\n"


def _ended(record: dict[str, Any]) -> str:
    """The status of a batch that has ended, else nothing."""
    for status in ("failed", "completed", "expired", "cancelled"):
        if record.get(f"{status}_at"):
            return status
    return ""


def _window(text: Any) -> float:
    try:
        seconds = float(text[:-1]) * _WINDOWS[text[-1]]
    except (TypeError, ValueError, KeyError, IndexError):
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise Wrong(400, "completion_window must be a time such as 24h or 7d", "completion_window")
    return seconds


def copied(path: Path, into: Any) -> None:
    """The bytes of a file to a client."""
    with path.open("rb") as file:
        shutil.copyfileobj(file, into, 1 << 18)
