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
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    started: bool = False
    ready: bool = False
    done: bool = False
    identity: str = ""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def exit_code(self) -> int | None:
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    def status(self) -> Object:
        """The entry in containerStatuses."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "containerID": self.identity,
            "ready": self.ready and "running" in self.state if not self.init else self.exit_code == 0,
            "started": self.started and "running" in self.state,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }


def terminated(code: int, started_at: str, *, message: str = "", reason: str = "") -> dict[str, Any]:
    """The state of an ended container; codes above 128 carry the signal that ended it."""
    entry: dict[str, Any] = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "startedAt": started_at,
        "finishedAt": now(),
    }
    if code > 128:
        entry["signal"] = code - 128
    if message:
        entry["message"] = message[-4096:]
    return {"terminated": entry}


def phase(inits: Sequence[Container], mains: Sequence[Container]) -> str:
    """Pending until the first main container has started, then Running, then how all of them ended."""
    if any(one.done and one.exit_code not in (0, None) for one in inits):
        return "Failed"
    if all(one.done for one in mains):
        return "Succeeded" if all(one.exit_code == 0 for one in mains) else "Failed"
    return "Running" if any("waiting" not in one.state or one.restarts or one.last for one in mains) else "Pending"


def pod_status(
    pod: Object, inits: Sequence[Container], mains: Sequence[Container], *, ip: str, node_ip: str, previous: Object
) -> Object:
    """The whole status. `previous` keeps the times of conditions that have not changed."""
    where = phase(inits, mains)
    finished = where in ("Succeeded", "Failed")
    ready = not finished and all(one.ready and "running" in one.state for one in mains)
    initialized = all(one.exit_code == 0 for one in inits)
    reason = "PodCompleted" if where == "Succeeded" else "ContainersNotReady"
    unready = [one.name for one in mains if not (one.ready and "running" in one.state)]
    conditions = [
        _condition("PodReadyToStartContainers", bool(ip) and not finished, "", "", previous),
        _condition("Initialized", initialized, "ContainersNotInitialized", "", previous),
        _condition("Ready", ready, reason, f"containers with unready status: {unready}", previous),
        _condition("ContainersReady", ready, reason, f"containers with unready status: {unready}", previous),
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
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    if inits:
        status["initContainerStatuses"] = [one.status() for one in inits]
    return status


def _condition(kind: str, holds: bool, reason: str, message: str, previous: Object) -> Object:
    value = "True" if holds else "False"
    entry: Object = {"type": kind, "status": value, "lastTransitionTime": now()}
    if not holds and reason:
        entry |= {"reason": reason, "message": message}
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
