"""Waiting for an object to become ready or to be gone, by watching it, and saying what is still missing."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from typing import Any

from ._client import RETRY_SECONDS, Client, segment
from ._errors import ApiError, Cancelled, NotReady, ProviderError, Unreachable
from ._kinds import Kind
from ._ready import READY, Object, State, judge_for, service_state, trouble, wait_for, wants_endpoints

DEFAULT_SECONDS = 600.0
"""Pulumi's own default for the await of a Kubernetes object."""
_SAY_EVERY = 1.0

Say = Callable[[str], None]


class Follower:
    """Keeps the latest state of one object, by a watch that is taken up again whenever it breaks."""

    def __init__(self, client: Client, collection: str, name: str, known: Object | None = None) -> None:
        self._client, self._collection, self._name = client, collection, name
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self.latest: Object | None = known
        self.gone = False
        self.silent_since: float | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"watch {name}")

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Return when something changed, or after `seconds`."""
        with self._changed:
            self._changed.wait(seconds)

    def _set(self, live: Object | None) -> None:
        with self._changed:
            self.gone = live is None
            self.latest = live or self.latest
            self.silent_since = None
            self._changed.notify_all()

    def _run(self) -> None:
        path = f"{self._collection}/{segment(self._name)}"
        while not self._stop.is_set():
            try:
                live = self._client.request("GET", path, retry_seconds=0)
                self._set(live)
                query = {
                    "fieldSelector": f"metadata.name={self._name}",
                    "resourceVersion": live["metadata"]["resourceVersion"],
                }
                for event in self._client.watch(self._collection, query, self._stop):
                    if event.get("type") in ("ADDED", "MODIFIED"):
                        self._set(event["object"])
                    elif event.get("type") == "DELETED":
                        self._set(None)
                    elif event.get("type") == "ERROR":
                        break
            except ApiError as error:
                if error.status == 404:
                    self._set(None)
                self._stop.wait(0.3)
            except Cancelled:
                return
            except (OSError, http.client.HTTPException, ValueError, ProviderError):
                self.silent_since = self.silent_since or time.monotonic()
                self._stop.wait(0.3)


def annotation(inputs: dict[str, Any], name: str) -> str | None:
    """The annotation `pulumi.com/<name>` of the inputs, where it is set and known."""
    annotations = (inputs.get("metadata") or {}).get("annotations")
    value = annotations.get(f"pulumi.com/{name}") if isinstance(annotations, dict) else None
    return None if value is None else str(value)


def skip_await(inputs: dict[str, Any]) -> bool:
    """Whether the annotation `pulumi.com/skipAwait` is "true"."""
    return (annotation(inputs, "skipAwait") or "").lower() == "true"


def seconds_for(inputs: dict[str, Any], requested: float) -> float:
    """The time-out: the request's (`customTimeouts`), else the annotation's, else ten minutes."""
    if requested > 0:
        return requested
    text = annotation(inputs, "timeoutSeconds")
    if text is None:
        return DEFAULT_SECONDS
    try:
        return float(text)
    except ValueError:
        raise ProviderError(f"pulumi.com/timeoutSeconds: {text!r} is not a number of seconds") from None


def until_ready(
    client: Client, kind: Kind, collection: str, live: Object, inputs: dict[str, Any], *, seconds: float, say: Say
) -> Object:
    """Wait until the object is ready and return its latest state. Raises NotReady or Cancelled."""
    if skip_await(inputs):
        return live
    judge = _judge(client, kind, inputs)
    if judge is None:
        return live
    state = judge(live)
    if state.ready:
        return live
    started, said, told, pause = time.monotonic(), "", 0.0, 0.05
    with Follower(client, collection, live["metadata"]["name"], live) as follower:
        while True:
            if follower.gone:
                raise NotReady("it was deleted by something else while waiting for it to become ready")
            live = follower.latest or live
            state = judge(live)
            if state.ready:
                return live
            if state.failed:
                raise NotReady(_explain(client, kind, live, state.message))
            now = time.monotonic()
            if now - started > seconds:
                text = f"not ready after {seconds:.0f} s: {_progress(client, kind, live, state)}"
                raise NotReady(_explain(client, kind, live, text))
            if follower.silent_since and now - follower.silent_since > RETRY_SECONDS:
                raise Unreachable(f"the API server stopped answering while waiting; last seen: {state.message}")
            if client.cancelled.is_set():
                raise Cancelled(f"stopped on request while waiting; last seen: {state.message}")
            if now - told >= _SAY_EVERY and now - started > 0.5:
                told, text = now, _progress(client, kind, live, state)
                if text != said:
                    said = text
                    say(text)
            # Services depend on objects that this watch does not see, so they are looked at again soon.
            follower.wait(min(pause, seconds))
            pause = min(pause * 1.5, 1.0)


def until_gone(client: Client, collection: str, live: Object, *, seconds: float, say: Say) -> None:
    """Wait until this very object (by uid) is gone. Raises NotReady or Cancelled."""
    uid, name = live["metadata"].get("uid"), live["metadata"]["name"]
    started, told = time.monotonic(), 0.0
    with Follower(client, collection, name) as follower:
        while True:
            follower.wait(0.25)
            latest = follower.latest
            if follower.gone or (latest is not None and latest["metadata"].get("uid") != uid):
                return
            now = time.monotonic()
            metadata = (latest or live)["metadata"]
            held = ", ".join(metadata.get("finalizers") or [])
            if now - started > seconds:
                text = f"still there {seconds:.0f} s after the delete"
                raise NotReady(text + (f"; held by finalizers: {held}" if held else ""))
            if follower.silent_since and now - follower.silent_since > RETRY_SECONDS:
                raise Unreachable("the API server stopped answering while waiting for the delete")
            if client.cancelled.is_set():
                raise Cancelled("stopped on request while waiting for the delete")
            if now - started > 1 and now - told > 5:
                told = now
                say("waiting for it to be gone" + (f"; finalizers: {held}" if held else ""))


def _judge(client: Client, kind: Kind, inputs: dict[str, Any]) -> Callable[[Object], State] | None:
    wanted = annotation(inputs, "waitFor")
    if wanted:
        return wait_for(wanted)
    if (kind.group, kind.kind) == ("", "Service"):
        return lambda live: service_state(live, _slices(client, live) if wants_endpoints(live) else [])
    if (kind.group, kind.kind) == ("", "PersistentVolumeClaim"):
        inner = judge_for(kind)
        assert inner is not None
        return lambda live: READY if _binds_late(client, live) else inner(live)
    return judge_for(kind)


def _slices(client: Client, service: Object) -> list[Object]:
    metadata = service["metadata"]
    path = f"/apis/discovery.k8s.io/v1/namespaces/{segment(metadata['namespace'])}/endpointslices"
    query = {"labelSelector": f"kubernetes.io/service-name={metadata['name']}"}
    return _items(client, path, query)


def _items(client: Client, path: str, query: dict[str, str]) -> list[Object]:
    try:
        return client.request("GET", path, query=query, retry_seconds=0).get("items") or []
    except Cancelled:
        raise
    except ProviderError:
        return []  # only for words of progress, or asked again in a moment


def _binds_late(client: Client, claim: Object) -> bool:
    name = (claim.get("spec") or {}).get("storageClassName")
    if not name:
        return False
    with contextlib.suppress(ApiError, Unreachable):
        found = client.request("GET", f"/apis/storage.k8s.io/v1/storageclasses/{segment(name)}", retry_seconds=0)
        return found.get("volumeBindingMode") == "WaitForFirstConsumer"
    return False


def pods_of(client: Client, kind: Kind, live: Object) -> list[Object]:
    """The pods that a workload (or a Service, or the Pod itself) stands for; empty for other kinds."""
    if (kind.group, kind.kind) == ("", "Pod"):
        return [live]
    spec = live.get("spec") or {}
    selector = spec.get("selector") or {}
    labels = selector.get("matchLabels") if "matchLabels" in selector else selector if kind.kind == "Service" else None
    if not labels or kind.kind == "PersistentVolumeClaim":
        return []
    path = f"/api/v1/namespaces/{segment(live['metadata']['namespace'])}/pods"
    query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items()), "limit": "500"}
    return _items(client, path, query)


def _progress(client: Client, kind: Kind, live: Object, state: State) -> str:
    troubled = [
        f"pod {pod['metadata']['name']}: {text}" for pod in pods_of(client, kind, live) if (text := trouble(pod))
    ]
    text = state.message
    if troubled:
        text += (
            "; waiting: " + "; ".join(troubled[:3]) + (f"; and {len(troubled) - 3} more" if len(troubled) > 3 else "")
        )
    elif kind.kind == "Job" and (last := _last_words(client, kind, live)):
        # How far a benchmark is, its pod itself knows best.
        text += f": {last}"
    return text


def _last_words(client: Client, kind: Kind, live: Object) -> str:
    """The last line that the Job's newest pod has logged."""
    metadata = live["metadata"]
    for pod in pods_of(client, kind, live)[-1:]:
        path = f"/api/v1/namespaces/{segment(metadata['namespace'])}/pods/{segment(pod['metadata']['name'])}/log"
        return client.text(path, {"tailLines": "1"}).strip()[-200:]
    return ""


def _explain(client: Client, kind: Kind, live: Object, text: str) -> str:
    """The message with the last events, and for a failed Job or Pod the end of its log."""
    namespace = live["metadata"].get("namespace")
    pods = [pod for pod in pods_of(client, kind, live) if kind.kind in ("Job", "Pod") or trouble(pod)][-3:]
    lines = []
    for name in dict.fromkeys([live["metadata"]["name"], *(pod["metadata"]["name"] for pod in pods)]):
        path = f"/api/v1/namespaces/{segment(namespace)}/events" if namespace else "/api/v1/events"
        events = _items(client, path, {"fieldSelector": f"involvedObject.name={name}"})
        events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        lines += [f"  event on {name}: {event.get('reason')}: {event.get('message')}" for event in events[-3:]]
    if kind.kind in ("Job", "Pod") and namespace:
        for pod in pods[-1:]:
            name = pod["metadata"]["name"]
            log = client.text(f"/api/v1/namespaces/{segment(namespace)}/pods/{segment(name)}/log", {"tailLines": "10"})
            lines += [f"  log of {name}: {line}" for line in log.splitlines()[-10:]]
    return "\n".join([text, *lines])
