"""A pod's status from the states of its containers: pure, so that it can be tested without a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ._api import Object
from ._events import now


@dataclass(kw_only=True)
class Container:
    """What is known of one container. `state` and `last` are as in a pod's status; `done`: it will not start again."""

    spec: Object
    init: bool = False
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    crashes: int = 0
    started: bool = False
    ready: bool = False
    done: bool = False
    identity: str = ""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def sidecar(self) -> bool:
        """An init container that runs on beside the main ones."""
        return self.init and self.spec.get("restartPolicy") == "Always"

    @property
    def running(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    @property
    def passed(self) -> bool:
        """For init containers: whether the next one may start."""
        return self.started and self.running if self.sidecar else self.exit_code == 0

    def restore(self, status: Object) -> None:
        """Take over what an earlier runner reported of this container."""
        self.state = status.get("state") or self.state
        self.last = status.get("lastState") or {}
        self.restarts = int(status.get("restartCount", 0))
        self.identity = status.get("containerID", "")
        self.done = "terminated" in self.state

    def status(self) -> Object:
        """The entry in containerStatuses."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "containerID": self.identity,
            "ready": self.exit_code == 0 if self.init and not self.sidecar else self.ready and self.running,
            "started": self.started and self.running,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }


def terminated(
    code: int, started_at: str, finished_at: str, *, message: str = "", reason: str = "", identity: str = ""
) -> dict[str, Any]:
    """The state of an ended container; codes above 128 carry the signal that ended it."""
    entry: dict[str, Any] = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "startedAt": started_at,
        "finishedAt": finished_at,
    }
    if 128 < code < 128 + 65:
        entry["signal"] = code - 128
    if message:
        entry["message"] = message[-4096:]
    if identity:
        entry["containerID"] = identity
    return {"terminated": entry}


def phase(inits: Sequence[Container], mains: Sequence[Container]) -> str:
    """Pending until the first main container has started, then Running, then how all of them ended."""
    if any(one.done and one.exit_code not in (0, None) for one in inits if not one.sidecar):
        return "Failed"
    if all(one.done for one in mains):
        return "Succeeded" if all(one.exit_code == 0 for one in mains) else "Failed"
    return "Running" if any("waiting" not in one.state or one.restarts or one.last for one in mains) else "Pending"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why the pod as a whole has failed, whatever its containers did."""

    reason: str
    message: str


def pod_status(
    inits: Sequence[Container],
    mains: Sequence[Container],
    *,
    ip: str,
    node_ip: str,
    previous: Object,
    sandbox: bool = True,
    failure: Failure | None = None,
) -> Object:
    """The whole status. `previous` keeps the times of conditions that have not changed; `sandbox`: the volumes are made."""
    where = "Failed" if failure else phase(inits, mains)
    finished = where in ("Succeeded", "Failed")
    lasting = [*(one for one in inits if one.sidecar), *mains]
    unready = [one.name for one in lasting if not (one.ready and one.running)]
    # Once a main container has run, a sidecar that restarts does not make the pod uninitialized again.
    initialized = all(one.passed for one in inits) or where in ("Running", "Succeeded")
    incomplete = [one.name for one in inits if not one.passed]
    reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(where, "ContainersNotReady")
    text = "" if finished else f"containers with unready status: [{' '.join(unready)}]"
    ready = not finished and not unready
    conditions = [
        _condition("PodReadyToStartContainers", sandbox and not finished, "", "", previous),
        _condition(
            "Initialized",
            initialized,
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(incomplete)}]",
            previous,
        ),
        _condition("Ready", ready, reason, text, previous),
        _condition("ContainersReady", ready, reason, text, previous),
        _condition("PodScheduled", True, "", "", previous),
    ]
    status: Object = {
        "phase": where,
        "conditions": conditions,
        "hostIP": node_ip,
        "hostIPs": [{"ip": node_ip}],
        "startTime": previous.get("startTime") or now(),
        "containerStatuses": [one.status() for one in mains],
    }
    if failure:
        status |= {"reason": failure.reason, "message": failure.message}
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    if inits:
        status["initContainerStatuses"] = [one.status() for one in inits]
    return status


def _condition(kind: str, holds: bool, reason: str, message: str, previous: Object) -> Object:
    # An explicit null takes away what stood there before: conditions are merged by their type.
    value = "True" if holds else "False"
    entry: Object = {
        "type": kind,
        "status": value,
        "lastTransitionTime": now(),
        "reason": None if holds or not reason else reason,
        "message": None if holds or not message else message,
    }
    for old in previous.get("conditions") or []:
        if old["type"] == kind and old["status"] == value:
            entry["lastTransitionTime"] = old.get("lastTransitionTime") or entry["lastTransitionTime"]
    return entry


def restarts(policy: str, code: int) -> bool:
    """Whether a container that ended with `code` is started again."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def backoff(base: float, crashes: int) -> float:
    """Seconds before start number `crashes` + 1: at once the first time, then base doubling up to five minutes."""
    return 0.0 if crashes <= 1 else min(300.0, base * 2 ** (crashes - 2))
