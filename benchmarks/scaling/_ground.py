"""What a stack's program registers, put on a running cluster by kubectl and helm: the same objects without an engine's state."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import yaml

from components.autoscaler_policy import gateway_queue
from components.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[2]
_MODEL = "local-vllm"
# What stands in for Pulumi's engine is one for the whole process.
_EVALUATING = threading.Lock()
# A pod is one process here, and two cores serve them all: small answers, few slots, times that are given and not modelled.
SIMULATED = {"TOLLGATE_SIM_TTFT": "200ms", "TOLLGATE_SIM_ITL": "50ms", "TOLLGATE_SIM_COLD_START": "2s"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look: seconds since the watcher began; replicas asked for and Ready; requests that wait and run."""

    at: float
    wanted: int
    ready: int
    pending: int
    waiting: float
    running: float


class Ground:
    """One stack of the embedded cluster. `settings`: fields of its file, over those of stacks/Pulumi.local-vllm.yaml."""

    def __init__(
        self,
        environment: Mapping[str, str],
        prometheus_url: str,
        name: str,
        *,
        settings: Mapping[str, Any] | None = None,
        slots: int = 4,
        nodes: int | None = None,
        simulated: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self.name, self.prometheus_url, self.state_dir = name, prometheus_url, state_dir
        self._environment, self._slots = dict(environment), slots
        self._settings, self._nodes = dict(settings or {}), nodes
        self._simulated = {**SIMULATED, **(simulated or {})}
        # Where its clients come in.
        self.entrance = "gateway" if "gateway" in self._settings else "engine"
        self.objects: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {}

    # ---------------------------------------------------------------- the stack

    def _evaluated(self) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            shutil.copy(ROOT / "Pulumi.yaml", root)
            shutil.copytree(ROOT / "stacks", root / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
            given = yaml.safe_load((root / "stacks" / f"Pulumi.{_MODEL}.yaml").read_text())["config"]
            given.pop("tollgate:benchmark", None)
            release = given["tollgate:release"]
            given |= {f"tollgate:{key}": value for key, value in self._settings.items()}
            (root / "stacks" / f"Pulumi.{self.name}.yaml").write_text(yaml.safe_dump({"config": given}))
            path = root / "stacks" / "releases" / f"{given.get('tollgate:release', release)}.yaml"
            text = yaml.safe_load(path.read_text())
            text["parallelism"] = {**text.get("parallelism", {}), "slots": self._slots}
            path.write_text(yaml.safe_dump(text))
            with _EVALUATING:
                return [dict(one) for one in evaluate(self.name, root)]

    def deploy(self) -> None:
        """Nodes, the engine's Helm release, and with it gateway and autoscaler where the stack has them."""
        found: dict[str, list[dict[str, Any]]] = {}
        for one in self._evaluated():
            found.setdefault(one["type"].rpartition(":")[2], []).append(one["inputs"])
        self.apply({"kind": "Namespace", "metadata": {"name": self.name}})
        self.nodes = [self._object(one, "Node", "v1") for one in found["Node"]]
        self.apply(*self.nodes[: self._nodes])
        (release,) = found["Release"]
        self.values = dict(release["values"])
        self.install()
        kinds = {"ConfigMap": "v1", "Service": "v1", "Deployment": "apps/v1", "ScaledObject": "keda.sh/v1alpha1"}
        self.objects = [
            self._object(one, kind, version) for kind, version in kinds.items() for one in found.get(kind, [])
        ]
        self._groups = [group for one in found.get("PrometheusRule", []) for group in one["spec"]["groups"]]
        self.apply(*[one for one in self.objects if one["kind"] != "ScaledObject"])
        if self.entrance != "engine":
            self.until(lambda: self.ready(self.entrance), f"the {self.entrance}", 60)

    def record(self, change: Callable[[dict[str, Any]], None]) -> None:
        """The stack's recordings, each as `change` edits it, in the cluster's Prometheus, every second."""
        if self.state_dir is None:
            raise RuntimeError("this ground does not know its cluster's files")
        group = next(one for one in self._groups if any("record" in rule for rule in one["rules"]))
        for rule in group["rules"]:
            change(rule)
        folder = self.state_dir / "prometheus" / "rules"
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.yaml").write_text(yaml.safe_dump({"groups": [{**group, "interval": "1s"}]}))
        urlopen(Request(f"{self.prometheus_url}/-/reload", method="POST"), timeout=10).close()

    @property
    def node_address(self) -> str:
        """Of every node."""
        found = self.get("nodes", self.nodes[0]["metadata"]["name"])["status"]["addresses"]
        return str(next(one["address"] for one in found if one["type"] == "InternalIP"))

    def autoscale(self, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """The stack's ScaledObject; `change` may edit it before."""
        (one,) = (one for one in self.objects if one["kind"] == "ScaledObject")
        change(one)
        self.apply(one)

    def install(self, **changed: Any) -> None:
        """The engine's chart, installed or upgraded; `changed`: values over those of the stack. Waits for its pods."""
        values = json.loads(json.dumps({**self.values, **changed}))
        values["server"]["env"] += [{"name": key, "value": value} for key, value in self._simulated.items()]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            chart = str(ROOT / "charts" / "engine")
            wait = ["--wait", "--timeout", "120s"]
            self._run("helm", "upgrade", "--install", "engine", chart, "-n", self.name, "-f", file.name, *wait)

    def remove(self) -> None:
        """Namespace and nodes; waits until its pods are gone."""
        self.kubectl("delete", "scaledobject,hpa", "--all", "--wait=false", check=False)
        self.kubectl("scale", "deploy", "--all", "--replicas=0", check=False)
        self.kubectl("delete", "pods", "--all", "--grace-period=1", "--timeout=60s", check=False)
        self.kubectl("delete", "namespace", self.name, "--wait=false", check=False)
        names = [one["metadata"]["name"] for one in getattr(self, "nodes", [])]
        self.kubectl("delete", "node", *names, "--ignore-not-found", check=False)

    def _object(self, inputs: Mapping[str, Any], kind: str, version: str) -> dict[str, Any]:
        made = {**inputs, "kind": kind, "apiVersion": version}
        if kind not in ("Node", "Namespace"):
            made["metadata"] = {**made["metadata"], "namespace": self.name}
        return made

    # ---------------------------------------------------------------- the cluster

    def _run(self, *command: str, given: str | None = None, check: bool = True, seconds: float = 150) -> str:
        done = subprocess.run(
            command, env=self._environment, input=given, capture_output=True, text=True, timeout=seconds, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command[:4])}: {done.stderr.strip()}")
        return done.stdout

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """Its standard output, in the stack's namespace. Raises RuntimeError with what it said."""
        return self._run("kubectl", "-n", self.name, *arguments, given=given, check=check)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Server-side, in one call."""
        if not objects:
            return
        items = [{"apiVersion": "v1", **one} for one in objects]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self._run("kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-", given=text)

    def get(self, *what: str) -> dict[str, Any]:
        """`kubectl get … -o json`."""
        return dict(json.loads(self.kubectl("get", *what, "-o", "json")))

    def ask(self, query: str) -> Sequence[Mapping[str, Any]]:
        """The series that Prometheus has for the query now."""
        url = f"{self.prometheus_url}/api/v1/query?query={quote(query, safe='')}"
        with urlopen(url, timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
        return list(found)

    def number(self, query: str) -> float:
        """The value of the one series; 0 where there is none."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else 0.0

    def url(self, service: str = "engine") -> str:
        """Where that Service answers."""
        return f"http://{self.get('service', service)['spec']['clusterIP']}:80"

    def until(self, check: Callable[[], Any], what: str, seconds: float = 60) -> float:
        """Seconds until `check` is true. Raises TimeoutError naming `what`."""
        began = time.monotonic()
        while not check():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            time.sleep(0.2)
        return time.monotonic() - began

    def _process(self, component: str) -> int:
        if self.state_dir is None:
            raise RuntimeError("this ground does not know its cluster's processes")
        return int(json.loads((self.state_dir / "state.json").read_text())["components"][component]["pid"])

    @contextmanager
    def paused(self, component: str) -> Iterator[None]:
        """While the block runs that process of the control plane is there and does not answer."""
        process = self._process(component)
        os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process, signal.SIGCONT)

    def kill(self, component: str) -> None:
        """End that process of the control plane; the cluster's supervisor starts it anew."""
        os.kill(self._process(component), signal.SIGKILL)

    def ready(self, name: str = "engine") -> int:
        """Replicas of it that are Ready."""
        return int(self.get("deploy", name).get("status", {}).get("readyReplicas") or 0)

    def wanted(self) -> int:
        """Replicas of the engine that are asked for."""
        return int(self.get("deploy", "engine")["spec"]["replicas"])


def scaled(
    found: Any, environment: Mapping[str, str], what: str, *, most: int, least: int = 1, cooldown: int = 8, **given: Any
) -> Ground:
    """A stack of that cluster (`local.cluster.Cluster`) with an autoscaler that does not wait long. `given`: policy, gateway,
    and what Ground takes."""
    scaling = {
        "polling_seconds": 1,
        "cold_start_seconds": 4,
        "cooldown_seconds": cooldown,
        "policy": given.pop("policy", "queue-and-slots"),
    }
    if least == 0:
        scaling["replicas_min"] = 0
    settings = {
        "fleet": {"machine_type": "g2-standard-8", "nodes": {"min": least, "max": most}},
        "autoscaling": scaling,
        **({"gateway": given.pop("gateway")} if "gateway" in given else {}),
    }
    return Ground(
        environment, found.prometheus_url, f"scale-{what}", settings=settings, state_dir=found.state_dir, **given
    )


@dataclass
class Watcher:
    """Looks at the stack twice a second from another thread, into `samples`."""

    ground: Ground
    every: float = 0.5
    samples: list[Sample] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        """While the block runs. `began` is then its first moment, monotonic."""
        self.began, over = time.monotonic(), threading.Event()

        def look() -> None:
            while not over.wait(self.every):
                try:
                    self.samples.append(self._sample())
                except (OSError, RuntimeError, ValueError, KeyError):
                    # What is being broken on purpose cannot be looked at.
                    continue

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join(10)

    def _sample(self) -> Sample:
        ground = self.ground
        found = ground.get("deploy", "engine")
        wanted, status = int(found["spec"]["replicas"]), found.get("status") or {}
        ready, there = int(status.get("readyReplicas") or 0), int(status.get("replicas") or 0)
        where = f'{{namespace="{ground.name}"}}'
        return Sample(
            at=time.monotonic() - self.began,
            wanted=wanted,
            ready=ready,
            pending=max(0, there - ready),
            waiting=ground.number(f"sum(vllm:num_requests_waiting{where})") + self._queued(),
            running=ground.number(f"sum(vllm:num_requests_running{where})"),
        )

    def _queued(self) -> float:
        if self.ground.entrance != "gateway":
            return 0.0
        return self.ground.number(gateway_queue(f'namespace="{self.ground.name}"', "engine"))

    def first(self, check: Callable[[Sample], bool]) -> float:
        """When that was first so; infinity if never."""
        return next((one.at for one in self.samples if check(one)), float("inf"))

    def replica_seconds(self) -> float:
        """Replicas that were asked for, over time: what is paid."""
        pairs = itertools.pairwise(self.samples)
        return sum(a.wanted * (b.at - a.at) for a, b in pairs)

    def reversals(self) -> int:
        """How often the number asked for changed its direction."""
        steps = [b.wanted - a.wanted for a, b in itertools.pairwise(self.samples)]
        signs = [1 if step > 0 else -1 for step in steps if step]
        return sum(a != b for a, b in itertools.pairwise(signs))
