"""The toll: a Job that measures the deployed service with the stack's own traffic, and the evidence made of it.

The Job runs once per trigger: the digest of all that defines the measurement (release, traffic, fleet, promise, image), and
how often that was tried, names it. So an `up` that changes none of them measures nothing again; where valid evidence of the
same lies in the store, made by whatever cluster, the Job is still there but only says so; where that has expired or is
inconclusive, there is another Job. The pod may only write its one result and list nodes; the signing key never enters the
cluster.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

import gate
import stacks
import values

from ._base import Component
from .cluster import Cluster
from .engines import ENGINE_NAME

_MOST_BYTES = 256_000_000


@dataclass(frozen=True, kw_only=True)
class BenchmarkJobArgs:
    """`environment`: what the evidence must match later (accelerator, machine type, region, replicas…), plain values.

    `against`: a service of the same cluster to be measured in turns with this one, in the words of `bench.job`; what that
    stack has deployed must be the release that this says.

    `measure`: of the digest of all that defines the measurement, what is left to measure. `record`: takes the result as
    JSON and what it was measured for, writes the evidence, gives (verdict, evidence id); called only outside previews.
    """

    stack: stacks.Stack
    benchmark: stacks.Benchmark
    namespace: pulumi.Input[str]
    url: pulumi.Input[str]
    release_digest: str
    replicas: int
    requests: int
    environment: Mapping[str, str | int | float | bool]
    cost_per_hour_usd: float
    against: Mapping[str, Any] | None = None
    measure: Callable[[str], gate.Measuring]
    record: Callable[[str, gate.Measuring], tuple[str, str]]


class BenchmarkJob(Component):
    """Attributes: `verdict` and `evidence`, Outputs; in a preview that would measure they are unknown."""

    verdict: pulumi.Output[str]
    evidence: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        args: BenchmarkJobArgs,
        cluster: Cluster,
        engine: pulumi.Resource,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        stack = args.stack
        config = {
            "engine": dialect(stack),
            "model": stack.release.source,
            "traffic": stack.traffic.model_dump(mode="json"),
            "objectives": stack.objectives.model_dump(mode="json", exclude_none=True),
            "runs": args.benchmark.runs,
            "seconds": args.benchmark.seconds,
            # Some more, as the first and the last of them may fall out of the window.
            "requests": math.ceil(1.1 * args.requests),
            "release": args.release_digest,
            "stack": stack.name,
            "replicas": args.replicas,
            "environment": dict(args.environment),
            "cost_per_hour_usd": args.cost_per_hour_usd,
            "context_tokens": stack.release.context_tokens,
            **({"against": dict(args.against)} if args.against is not None else {}),
        }
        measuring = args.measure(stacks.digest({**config, "image": args.benchmark.image}))
        # Other prompts each time: a cache must not know them from the look before.
        config["seed"] = measuring.attempt
        trigger = stacks.digest([measuring.benchmark, measuring.attempt]).removeprefix("sha256:")[:12]
        job_name, result_name = f"bench-{trigger}", f"bench-result-{trigger}"
        super().__init__(
            name, {"trigger": trigger, "runs": args.benchmark.runs, "seconds": args.benchmark.seconds}, opts
        )
        inside = self._child(provider=cluster.provider)
        workload = _workload(stack)
        config["workload"] = workload

        account = k8s.core.v1.ServiceAccount(
            f"{name}-account", metadata={"name": "bench", "namespace": args.namespace}, opts=inside
        )
        # `create` cannot be limited to a name by RBAC; everything else can.
        role = k8s.rbac.v1.Role(
            f"{name}-role",
            metadata={"name": "bench", "namespace": args.namespace},
            rules=[
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
                {
                    "apiGroups": [""],
                    "resources": ["configmaps"],
                    "resourceNames": [result_name],
                    "verbs": ["get", "update", "patch", "delete"],
                },
                *_may_watch(workload),
            ],
            opts=inside,
        )
        binding = k8s.rbac.v1.RoleBinding(
            f"{name}-binding",
            metadata={"name": "bench", "namespace": args.namespace},
            role_ref={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "bench"},
            subjects=[{"kind": "ServiceAccount", "name": "bench", "namespace": args.namespace}],
            opts=self._child(provider=cluster.provider, depends_on=[role, account]),
        )
        self._see_nodes(name, args, cluster, account)
        text = pulumi.Output.all(url=args.url, namespace=args.namespace).apply(
            lambda known: json.dumps({**config, **known, "result_configmap": result_name}, indent=1, sort_keys=True)
        )
        settings = k8s.core.v1.ConfigMap(
            f"{name}-config-{trigger}",
            metadata={"name": job_name, "namespace": args.namespace},
            data={"bench.json": text},
            opts=inside,
        )
        job = k8s.batch.v1.Job(
            f"{name}-job-{trigger}",
            metadata={
                "name": job_name,
                "namespace": args.namespace,
                "annotations": {
                    "pulumi.com/timeoutSeconds": str(_longest(args.benchmark)),
                    **({"tollgate.dev/against": self._beside(args.against)} if args.against is not None else {}),
                },
            },
            spec=_job_spec(job_name, args.benchmark, measuring.known, api_key_variable(stack)),
            # A Job that has measured stays as it is when there is nothing to measure any more.
            opts=self._child(
                provider=cluster.provider, depends_on=[engine, settings, binding], ignore_changes=["spec"]
            ),
        )
        # The identifier follows from the finished Job, so that a preview that would measure reads nothing yet.
        where = pulumi.Output.all(args.namespace, job.status).apply(lambda known: f"{known[0]}/{result_name}")
        result = k8s.core.v1.ConfigMap.get(
            f"{name}-result-{trigger}", where, opts=self._child(provider=cluster.provider, depends_on=[job])
        )
        outcome = pulumi.Output.all(result.data, result.binary_data).apply(
            lambda found: self._judge(found, measuring, args.measure, args.record)
        )
        self.verdict = outcome.apply(lambda pair: pair[0])
        self.evidence = outcome.apply(lambda pair: pair[1])
        self.register_outputs({"verdict": self.verdict, "evidence": self.evidence})

    def _see_nodes(
        self, name: str, args: BenchmarkJobArgs, cluster: Cluster, account: k8s.core.v1.ServiceAccount
    ) -> None:
        """Evidence says on what node image and driver it was made; nodes can only be read cluster-wide."""
        wide = f"tollgate-bench-{args.stack.namespace}"
        role = k8s.rbac.v1.ClusterRole(
            f"{name}-nodes",
            metadata={"name": wide},
            rules=[{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}],
            opts=self._child(provider=cluster.provider),
        )
        k8s.rbac.v1.ClusterRoleBinding(
            f"{name}-nodes-binding",
            metadata={"name": wide},
            role_ref={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": wide},
            subjects=[{"kind": "ServiceAccount", "name": "bench", "namespace": args.namespace}],
            opts=self._child(provider=cluster.provider, depends_on=[role, account]),
        )

    def _beside(self, against: Mapping[str, Any]) -> pulumi.Output[str]:
        """The digest of what the stack beside has deployed, which has to be what its file says."""
        other, wanted = against["stack"], against["release"]

        def same(found: Any) -> str:
            if found != wanted:
                # Promoted and not deployed yet: the evidence would name one release as baseline and have measured another.
                runs = f"runs release {str(found)[:19]}…, its file says {wanted[:19]}…" if found else "is not deployed"
                raise pulumi.RunError(
                    f"nothing can be measured against {other}: it {runs}\n  fix: pulumi up -s {other}"
                )
            return str(found)

        name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{other}"
        deployed: pulumi.Output[Any] = pulumi.StackReference(name, opts=self._child()).get_output("digest")
        return deployed.apply(same)

    def _judge(
        self,
        found: list[Any],
        measuring: gate.Measuring,
        measure: Callable[[str], gate.Measuring],
        record: Callable[[str, gate.Measuring], tuple[str, str]],
    ) -> tuple[str, str]:
        if measuring.known is not None:
            return measuring.verdict, measuring.known
        if pulumi.runtime.is_dry_run():
            return ("recorded by an earlier up", "")
        verdict, evidence = record(result_text(*found), measuring)
        where = f"tollgate evidence show {evidence[7:19]}"
        if measure(measuring.benchmark).known is None:
            open_for = "a stage that takes releases from here cannot tell yet" if verdict == "pass" else "open"
            pulumi.log.warn(f"the benchmark's verdict is {verdict}, {open_for}: {where}; the next up adds runs", self)
        elif verdict != "pass":
            pulumi.log.warn(f"the benchmark's verdict is {verdict}: {where}", self)
        return verdict, evidence


def result_text(data: Mapping[str, str] | None, binary: Mapping[str, str] | None) -> str:
    """The result JSON out of its ConfigMap: plain under `data`, or gzipped and base64 under `binaryData`."""
    if data and "result.json" in data:
        return data["result.json"]
    if binary and "result.json" in binary:
        try:
            # Whoever may write ConfigMaps there could have put anything.
            return stacks.unpacked(base64.b64decode(binary["result.json"]), _MOST_BYTES).decode()
        except ValueError as error:
            raise stacks.TollgateError(f"the benchmark's ConfigMap cannot be unpacked: {error}") from None
    raise stacks.TollgateError("the benchmark's ConfigMap holds no result.json; delete its Job and run pulumi up again")


def dialect(stack: stacks.Stack) -> str:
    """The API the load is sent in; what is neither Ollama nor vLLM, nor the simulator, speaks OpenAI's."""
    if stack.release.engine in ("ollama", "vllm"):
        return stack.release.engine
    return "vllm" if stack.serving.simulate else "openai"


def _workload(stack: stacks.Stack) -> str:
    """Whose rollout the Job awaits; nothing where a replica is an object of its own (gangs, Ray clusters)."""
    if values.nodes_per_replica(stack.release) == 1:
        return f"apps/v1/deployments/{ENGINE_NAME}"
    if stack.serving.group.controller == "lws" and stack.serving.group.gang != "coscheduling":
        return f"leaderworkerset.x-k8s.io/v1/leaderworkersets/{ENGINE_NAME}"
    return ""


def _may_watch(workload: str) -> list[dict[str, list[str]]]:
    if not workload:
        return []
    group, _, plural, name = workload.split("/")
    return [{"apiGroups": [group], "resources": [plural], "resourceNames": [name], "verbs": ["get"]}]


def _longest(benchmark: stacks.Benchmark) -> int:
    """A window may grow to 5 times its length, warm-up may take twice that (bench.load bounds them so), and rollout and
    loading may take a quarter of an hour and more."""
    return int(benchmark.runs * benchmark.seconds * 15 * (2 if benchmark.against else 1) + 1500)


def api_key_variable(stack: stacks.Stack) -> list[dict[str, Any]]:
    """The engine's API key for the Job's environment, by reference: its value is in the Secret alone."""
    if not stack.serving.api_key:
        return []
    name = stack.serving.secret or values.SECRET
    return [{"name": "TOLLGATE_API_KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "api-key"}}}]


def _job_spec(
    job_name: str, benchmark: stacks.Benchmark, known: str | None, environment: list[dict[str, Any]]
) -> dict[str, Any]:
    arguments = ["job", "--config", "/etc/tollgate/bench.json", *(["--known", known] if known else [])]
    return {
        # A failed measurement is repeated once by hand, not silently: a second try would hide a flapping service.
        "backoffLimit": 0,
        "activeDeadlineSeconds": _longest(benchmark),
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/name": "bench"}},
            "spec": {
                "serviceAccountName": "bench",
                "restartPolicy": "Never",
                # What a namespace of level `restricted` asks of every pod.
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "bench",
                        "image": benchmark.image,
                        "args": arguments,
                        **({"env": environment} if environment else {}),
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        "resources": {"requests": {"cpu": "1", "memory": "256Mi"}},
                        "volumeMounts": [{"name": "config", "mountPath": "/etc/tollgate", "readOnly": True}],
                    }
                ],
                "volumes": [{"name": "config", "configMap": {"name": job_name}}],
                # The load may share a GPU machine's spare cores: it asks for no GPU.
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            },
        },
    }
