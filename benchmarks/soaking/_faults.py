"""The faults: each a real one, and each looked after until everything is as it was before."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from local import cluster

from ._checks import Gate
from ._judge import Fault
from ._load import Load
from ._place import Disk

PROCESSES = ("kube-apiserver", "prometheus", "keda-operator", "runner", "keda-adapter", "etcd")
# In turn. What takes a while to heal (nodes, disks) has others between it and the next of its sort.
KINDS = (
    *("pod", "kube-apiserver", "node lost", "prometheus", "disk full", "engine", "keda-operator"),
    *("node silent", "runner", "evidence disk full", "keda-adapter", "etcd"),
)
# A node that is gone is noticed after 40 s, its pods are collected within another minute, and started again elsewhere.
HEAL_SECONDS = 180.0
_FULL_SECONDS = 8.0
_DEAD_SECONDS = 15.0
_KUBECTL_SECONDS = 60.0
_PORT = {"ollama": 11434, "vllm": 8000}
_RUNNER_LABEL = "tollgate.dev/runner"

Object = dict[str, Any]
Step = Callable[[], bool]


class Breaker:
    """Breaks things of the cluster `name`. `stacks`: name -> engine of those under load."""

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        stacks: Mapping[str, str],
        load: Load,
        gate: Gate,
        disk: Disk,
    ) -> None:
        self.faults: list[Fault] = []
        self.running = True
        self._name, self._environment, self._stacks = name, dict(environment), dict(stacks)
        self._load, self._gate, self._disk = load, gate, disk
        self._healing: list[tuple[Fault, Step]] = []
        self._random = random.Random(1)
        self._sent = 0

    # ------------------------------------------------------------------ what the run calls

    def strike(self, kind: str) -> Fault:
        """Do it; returns as soon as it is done, healed or not."""
        self._until_the_api_answers()
        fault = Fault(at=self._load.now(), kind=kind, target=kind)
        self.faults.append(fault)
        ways: dict[str, Callable[[Fault], Step]] = {
            "pod": self._pod,
            "engine": self._engine,
            "node lost": self._node_lost,
            "node silent": self._node_silent,
            "disk full": self._full,
            "evidence disk full": self._evidence_full,
        }
        self._healing.append((fault, ways.get(kind, self._process)(fault)))
        return fault

    def tend(self) -> list[Fault]:
        """See what has healed since; those that have, or that have been given up."""
        settled = []
        for fault, healed in list(self._healing):
            late = self._load.now() - fault.at > HEAL_SECONDS
            try:
                done = healed()
            except (RuntimeError, subprocess.TimeoutExpired, ValueError, KeyError):
                # Whoever is asked may itself be what is broken now.
                done = False
            if done:
                fault.healed = self._load.now()
            if done or late:
                self._healing.remove((fault, healed))
                settled.append(fault)
        return settled

    @property
    def healing(self) -> bool:
        """Whether anything is still broken."""
        return bool(self._healing)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Its standard output. Raises RuntimeError with what it said."""
        command = ["kubectl", "--request-timeout=10s", *arguments]
        done = subprocess.run(
            command,
            env=self._environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=_KUBECTL_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def spare_nodes(self) -> None:
        """One more node for each stack, so that there is an elsewhere for the pods of one that is lost."""
        for stack in self._stacks:
            pod = self._pods(stack)[0]
            node = json.loads(self.kubectl("get", "node", pod["spec"]["nodeName"], "-o", "json"))
            self._make_node(node, f"{stack}-spare")

    # ------------------------------------------------------------------ faults

    def _process(self, fault: Fault) -> Step:
        before = self._component(fault.kind)
        if before.pid is None:
            # Something else has just ended it; it is on its way back.
            fault.target = f"{fault.kind} (was down)"
        else:
            os.kill(before.pid, signal.SIGKILL)
            fault.target = f"{fault.kind} ({before.pid})"

        def healed() -> bool:
            now = self._component(fault.kind)
            return now.phase == "ready" and now.pid != before.pid

        return healed

    def _pod(self, fault: Fault) -> Step:
        pod = self._victim(fault)
        meta = pod["metadata"]
        at_once = ("--grace-period=0", "--force", "--wait=false")
        self._surely("delete", "pod", "-n", meta["namespace"], meta["name"], *at_once)
        self._await_death(fault, [pod])
        return lambda: meta["uid"] not in self._uids(fault.stack) and self._whole(fault.stack)

    def _engine(self, fault: Fault) -> Step:
        """The container's process alone: the pod stays, and its container is started again."""
        pod = self._victim(fault)
        meta = pod["metadata"]
        there = cluster.load(self._name)
        known = json.loads((there.state_dir / "runner" / "pods" / meta["uid"] / "pod.json").read_text())
        for entry in known["containers"].values():
            for child in psutil.Process(int(entry["pid"])).children(recursive=True):
                child.kill()
        self._await_death(fault, [pod])
        before = sum(one["restartCount"] for one in pod["status"]["containerStatuses"])

        def healed() -> bool:
            found = [one for one in self._pods(fault.stack) if one["metadata"]["uid"] == meta["uid"]]
            again = not found or sum(one["restartCount"] for one in found[0]["status"]["containerStatuses"]) > before
            return again and self._whole(fault.stack)

        return healed

    def _node_lost(self, fault: Fault) -> Step:
        """The object goes, and with it all pods on it; it comes back when they run elsewhere."""
        name, pods, node = self._victim_node(fault)
        self._surely("delete", "node", name, "--wait=false")
        self._await_death(fault, pods)
        lost = {pod["metadata"]["uid"] for pod in pods}
        returned = False

        def healed() -> bool:
            nonlocal returned
            if not returned and not lost & self._uids(fault.stack) and self._whole(fault.stack):
                self._make_node(node, name)
                returned = True
            return returned and self._ready(name) and self._whole(fault.stack)

        return healed

    def _node_silent(self, fault: Fault) -> Step:
        """No heartbeat and no process any more; when the control plane has noticed it comes back, as after a power cut."""
        name, pods, _ = self._victim_node(fault)
        self._surely("label", "node", name, f"{_RUNNER_LABEL}-")
        self._await_death(fault, pods)
        noticed = returned = False

        def healed() -> bool:
            nonlocal noticed, returned
            noticed = noticed or not self._ready(name)
            if noticed and not returned:
                self.kubectl("label", "node", name, f"{_RUNNER_LABEL}=process", "--overwrite")
                returned = True
            return returned and self._ready(name) and self._whole(fault.stack)

        return healed

    def _full(self, fault: Fault) -> Step:
        """The disk of the whole control plane, of Prometheus, and of the pod runner with all pods."""
        fault.target = str(self._disk.path.name)
        end = time.monotonic() + _FULL_SECONDS
        try:
            while time.monotonic() < end and self.running:
                self._disk.fill()
                time.sleep(0.5)
        finally:
            self._disk.free()
        return lambda: self._all_ready() and all(self._whole(stack) for stack in self._stacks)

    def _evidence_full(self, fault: Fault) -> Step:
        """Beside the others: the command line takes its time, and the gate may just be asked something else."""
        fault.target = "evidence store"
        done = threading.Event()

        def full() -> None:
            try:
                fault.wrong += self._gate.full_disk(fault.at)
            except (OSError, subprocess.TimeoutExpired) as error:
                fault.wrong.append(f"could not be done: {error}")
            finally:
                done.set()

        threading.Thread(target=full, daemon=True).start()
        return done.is_set

    # ------------------------------------------------------------------ victims

    def _victim(self, fault: Fault) -> Object:
        """A pod that serves, of a stack that is whole if there is one."""
        busy = {one.stack for one, _ in self._healing if one.stack}
        choice = [stack for stack in self._stacks if stack not in busy] or list(self._stacks)
        self._random.shuffle(choice)
        for stack in [*choice, *self._stacks]:
            pods = [pod for pod in self._pods(stack) if ready(pod)]
            if pods:
                pod: Object = self._random.choice(pods)
                fault.stack, fault.target = stack, f"{stack}/{pod['metadata']['name']}"
                self._begin(fault)
                return pod
        raise RuntimeError("no pod is Ready")

    def _victim_node(self, fault: Fault) -> tuple[str, list[Object], Object]:
        pod = self._victim(fault)
        name = str(pod["spec"]["nodeName"])
        fault.target = f"{fault.stack}/{name}"
        node = json.loads(self.kubectl("get", "node", name, "-o", "json"))
        pods = [one for one in self._pods(fault.stack) if one["spec"].get("nodeName") == name]
        self._begin(fault)
        return name, pods, node

    def _begin(self, fault: Fault) -> None:
        fault.at, (fault.flying, self._sent) = self._load.now(), self._load.flying(fault.stack)

    def _await_death(self, fault: Fault, pods: Sequence[Object]) -> None:
        """Until nothing listens there any more: what is sent later was not in flight."""
        port, end = _PORT[self._stacks[fault.stack]], time.monotonic() + _DEAD_SECONDS
        for pod in pods:
            while listens(pod["status"].get("podIP", ""), port):
                if time.monotonic() > end:
                    fault.wrong.append(f"{pod['metadata']['name']} still serves after {_DEAD_SECONDS:.0f} s")
                    break
                time.sleep(0.02)
        fault.dead = self._load.now()
        fault.flying += self._load.flying(fault.stack)[1] - self._sent

    # ------------------------------------------------------------------ looking

    def _surely(self, *arguments: str, given: str | None = None) -> None:
        """A change that is made although the API server may go away in the middle of it, before or after it was made."""
        end = time.monotonic() + _KUBECTL_SECONDS
        while True:
            try:
                self.kubectl(*arguments, given=given)
                return
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                if "NotFound" in str(error) or "AlreadyExists" in str(error):
                    return
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def _until_the_api_answers(self) -> None:
        end = time.monotonic() + HEAL_SECONDS
        while self.running:
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                self.kubectl("get", "--raw", "/readyz")
                return
            if time.monotonic() > end:
                raise RuntimeError(f"the API server does not answer for {HEAL_SECONDS:.0f} s")
            time.sleep(0.5)

    def _component(self, name: str) -> cluster.ComponentStatus:
        return next(one for one in cluster.status(self._name).components if one.name == name)

    def _all_ready(self) -> bool:
        return all(one.phase == "ready" for one in cluster.status(self._name).components)

    def _pods(self, stack: str) -> list[Object]:
        listed = self.kubectl("get", "pods", "-n", stack, "-l", "app.kubernetes.io/instance=engine", "-o", "json")
        found: list[Object] = json.loads(listed)["items"]
        return found

    def _uids(self, stack: str) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self._pods(stack)}

    def _whole(self, stack: str) -> bool:
        """As many replicas serve as are asked for."""
        deployment = json.loads(self.kubectl("get", "deployment", "-n", stack, "engine", "-o", "json"))
        return bool(deployment["spec"]["replicas"] <= deployment["status"].get("readyReplicas", 0))

    def _ready(self, node: str) -> bool:
        found = json.loads(self.kubectl("get", "node", node, "-o", "json"))
        return ready(found)

    def _make_node(self, node: Object, name: str) -> None:
        meta = node["metadata"]
        labels = {**meta["labels"], "kubernetes.io/hostname": name}
        kept = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": meta.get("annotations", {})},
            "spec": {
                "taints": [
                    one for one in node["spec"].get("taints", ()) if not one["key"].startswith("node.kubernetes.io")
                ]
            },
        }
        self._surely("create", "-f", "-", given=json.dumps(kept))


def ready(thing: Object) -> bool:
    """Whether a pod or node says so of itself and nobody has begun to delete it."""
    conditions = thing.get("status", {}).get("conditions", ())
    said = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return said and not thing["metadata"].get("deletionTimestamp")


def listens(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True
