"""What stands before the engine: HAProxy of our configuration, or the cluster's Gateway with an InferencePool.

The proxy gives a request to the replica with the fewest open ones (a stream counts until its last token), but never more than
its slots and a little: what is more waits in the proxy, for whichever replica is free or there first, because what an engine
has queued never moves to a new one. It takes a replica out after three failed checks, keeps sessions together by consistent
hashing where that is asked for, and splits requests between two releases by weight. Where a service may sleep, requests that
find nobody are held, not refused: each asks the Service again every second, and is served by the first replica that is there.
Deliberately not here: TLS and certificates (terminate before it, or use the cluster's Gateway), and rate limits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

import stacks

from ._base import Component
from .cluster import Cluster

GATEWAY_NAME = "gateway"
HEALTH_PATH = "/gateway/health"
_POOL_CHART = "oci://registry.k8s.io/gateway-api-inference-extension/charts/inferencepool"
_POOL_VERSION = "v1.2.0"
_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One release behind the gateway. `service`: its Helm release; `port`, `health`: of its pods; `most`: pods at the most.

    `slots`: of each; `percent`: of the requests; `engine`: the chart's label of its pods.
    """

    service: str
    engine: str
    port: int
    health: str
    most: int
    slots: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class GatewayArgs:
    """`backends`: the release, and maybe its candidate. `address`: a reserved one for an external gateway.

    `hold_seconds`: for how long a request waits for a replica; `sleeps`: also for the first one, else it is refused while
    there is none. `embedded`: on the embedded cluster, whose DNS is on the nodes. `monitored`: the cluster has Prometheus'
    operator.
    """

    gateway: stacks.Gateway
    namespace: pulumi.Input[str]
    namespace_name: str
    backends: Sequence[Backend]
    drain_seconds: int
    address: pulumi.Input[str] | None = None
    hold_seconds: int = 600
    sleeps: bool = False
    embedded: bool = False
    monitored: bool = False


class InferenceGateway(Component):
    """Attribute: `url`, where the gateway answers inside the cluster; None for the cluster's own Gateway."""

    url: pulumi.Output[str] | None

    def __init__(
        self,
        name: str,
        args: GatewayArgs,
        cluster: Cluster,
        depends_on: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        shares = {backend.service: backend.percent for backend in args.backends}
        super().__init__(name, {"kind": args.gateway.kind, "shares": shares}, opts)
        self.url = None
        if args.gateway.kind == "proxy":
            self._proxy(name, args, cluster, depends_on)
            self.url = pulumi.Output.concat("http://", GATEWAY_NAME, ".", args.namespace, ".svc:80")
        else:
            self._extension(name, args, cluster, depends_on)
        self.register_outputs({"url": self.url})

    def _proxy(self, name: str, args: GatewayArgs, cluster: Cluster, depends_on: Sequence[pulumi.Resource]) -> None:
        labels = {"app.kubernetes.io/name": GATEWAY_NAME, "app.kubernetes.io/instance": GATEWAY_NAME}
        config = haproxy(
            args.gateway,
            args.namespace_name,
            args.backends,
            args.drain_seconds,
            hold_seconds=args.hold_seconds,
            sleeps=args.sleeps,
            embedded=args.embedded,
        )
        where = {"name": GATEWAY_NAME, "namespace": args.namespace, "labels": labels}
        settings = k8s.core.v1.ConfigMap(
            f"{name}-config", metadata=where, data={"haproxy.cfg": config}, opts=self._child(provider=cluster.provider)
        )
        k8s.apps.v1.Deployment(
            f"{name}-proxy",
            metadata=where,
            spec={
                "replicas": args.gateway.replicas,
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {
                    "metadata": {
                        "labels": labels,
                        # A proxy reads its file once: another file is another pod.
                        "annotations": {
                            "tollgate.dev/config": hashlib.sha256(config.encode()).hexdigest()[:16],
                            "prometheus.io/scrape": "true",
                            "prometheus.io/port": "8404",
                        },
                    },
                    "spec": _proxy_pod(args, labels),
                },
            },
            opts=self._child(provider=cluster.provider, depends_on=[settings, *depends_on]),
        )
        k8s.policy.v1.PodDisruptionBudget(
            f"{name}-budget",
            metadata=where,
            spec={"maxUnavailable": 1, "selector": {"matchLabels": labels}},
            opts=self._child(provider=cluster.provider),
        )
        if args.monitored:
            k8s.apiextensions.CustomResource(
                f"{name}-monitor",
                api_version="monitoring.coreos.com/v1",
                kind="PodMonitor",
                metadata=where,
                spec={
                    "selector": {"matchLabels": labels},
                    "podMetricsEndpoints": [{"port": "metrics", "interval": "5s"}],
                },
                opts=self._child(provider=cluster.provider),
            )
        spec: dict[str, Any] = {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
        if args.gateway.external:
            spec |= {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
            if args.address is not None:
                spec["loadBalancerIP"] = args.address
        annotations = {"cloud.google.com/l4-rbs": "enabled"} if args.address is not None else {}
        k8s.core.v1.Service(
            f"{name}-service",
            metadata={**where, "annotations": annotations},
            spec=spec,
            opts=self._child(provider=cluster.provider),
        )

    def _extension(self, name: str, args: GatewayArgs, cluster: Cluster, depends_on: Sequence[pulumi.Resource]) -> None:
        """One InferencePool per release by the extension's own chart, and a route that weighs them."""
        pools = []
        for backend in args.backends:
            pool = stacks.fit(f"{backend.service}-pool", 53)
            release = k8s.helm.v3.Release(
                f"{name}-{pool}",
                name=pool,
                namespace=args.namespace,
                chart=_POOL_CHART,
                version=_POOL_VERSION,
                values={
                    "inferencePool": {
                        "targetPorts": [{"number": backend.port}],
                        "modelServerType": "vllm",
                        "modelServers": {
                            "matchLabels": {
                                "app.kubernetes.io/name": backend.engine,
                                "app.kubernetes.io/instance": backend.service,
                            }
                        },
                    },
                    "provider": {"name": "gke"},
                },
                atomic=True,
                timeout=300,
                opts=self._child(provider=cluster.provider, depends_on=list(depends_on)),
            )
            pools.append((pool, backend.percent, release))
        k8s.apiextensions.CustomResource(
            f"{name}-route",
            api_version="gateway.networking.k8s.io/v1",
            kind="HTTPRoute",
            metadata={"name": GATEWAY_NAME, "namespace": args.namespace},
            spec={
                "parentRefs": [{"name": args.gateway.gateway}],
                "rules": [
                    {
                        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                        "backendRefs": [
                            {
                                "group": "inference.networking.k8s.io",
                                "kind": "InferencePool",
                                "name": pool,
                                "weight": round(percent * 100),
                            }
                            for pool, percent, _ in pools
                        ],
                        # A stream lasts as long as its tokens do.
                        "timeouts": {"request": "3600s"},
                    }
                ],
            },
            opts=self._child(provider=cluster.provider, depends_on=[release for _, _, release in pools]),
        )


def _proxy_pod(args: GatewayArgs, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The hook, the proxy's own end of streams, and a little.
        "terminationGracePeriodSeconds": 15 + args.drain_seconds + 5,
        "topologySpreadConstraints": [
            {
                "topologyKey": "topology.kubernetes.io/zone",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 99,
            "runAsGroup": 99,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # The embedded cluster has no other nodes.
        **({"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]} if args.embedded else {}),
        "containers": [
            {
                "name": "haproxy",
                "image": args.gateway.image,
                "args": ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"],
                "env": [
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    *(
                        [{"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]
                        if args.embedded
                        else []
                    ),
                ],
                "ports": [
                    {"name": "http", "containerPort": 8080},
                    {"name": "metrics", "containerPort": 8404},
                ],
                "securityContext": _SECURITY,
                # Load balancers stop sending first; then the image's own stop signal, SIGUSR1, lets open streams end.
                "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "sleep 15"]}}},
                "readinessProbe": {"httpGet": {"path": HEALTH_PATH, "port": "http"}, "periodSeconds": 2},
                "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10},
                "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/haproxy", "readOnly": True}],
            }
        ],
        "volumes": [{"name": "config", "configMap": {"name": GATEWAY_NAME}}],
    }


def haproxy(
    gateway: stacks.Gateway,
    namespace: str,
    backends: Sequence[Backend],
    drain_seconds: int,
    *,
    domain: str = "svc.cluster.local",
    hold_seconds: int = 600,
    sleeps: bool = False,
    embedded: bool = False,
) -> str:
    """The proxy's whole configuration. A second backend is given its share of the requests in hundredths of a percent.

    `hold_seconds`: requests wait so long for a free replica; `sleeps`: also where there is none at all. `embedded`: the proxy
    has an address of its own to listen on, and asks the node for names.
    """
    main, *others = backends
    here = "${POD_IP}" if embedded else ""
    resolve = "resolvers cluster resolve-prefer ipv4"
    lines = [
        "global",
        "    log stdout format raw local0 info",
        # Two descriptors each: more than a node's limit for a process without rights, and it would not start at all.
        "    maxconn 8000",
        f"    hard-stop-after {drain_seconds}s",
        "defaults",
        "    mode http",
        "    log global",
        "    option httplog",
        "    option dontlognull",
        # Only what no replica has seen is asked again: a reply that was begun is never begun anew.
        # By another replica at once, as long as there is one: half of a fleet may just be going.
        "    option redispatch 1",
        "    retry-on conn-failure",
        # Who has hung up while he waited here is not worked for.
        "    option abortonclose",
        "    timeout connect 2s",
        "    timeout http-request 10s",
        # Streams are silent while a prompt is worked.
        "    timeout client 1h",
        "    timeout server 1h",
        f"    timeout queue {hold_seconds}s",
        "resolvers cluster",
        f"    nameserver node ${{NODE_IP}}:{_EMBEDDED_DNS_PORT}" if embedded else "    parse-resolv-conf",
        *_RESOLVING,
        "frontend http",
        f"    bind {here}:8080",
        f"    monitor-uri {HEALTH_PATH}",
        *[f"    acl has_{one.service} nbsrv({one.service}) gt 0" for one in backends],
    ]
    if not sleeps:
        # Who holds requests is well without any replica.
        lines.append(f"    monitor fail unless {' or '.join(f'has_{one.service}' for one in backends)}")
    for one in others:
        # With sessions the split goes by session, so that a conversation stays with one release.
        draw = f"req.hdr({gateway.header}),xxh32(1),mod(10000)" if gateway.affinity == "session" else "rand(10000)"
        lines.append(f"    use_backend {one.service} if {{ {draw} lt {round(one.percent * 100)} }} has_{one.service}")
    lines += [
        f"    use_backend {main.service} if has_{main.service}",
        *[f"    use_backend {one.service} if has_{one.service}" for one in others],
        f"    default_backend {main.service}",
        "frontend metrics",
        f"    bind {here}:8404",
        "    http-request set-log-level silent",
        "    http-request use-service prometheus-exporter if { path /metrics }",
    ]
    for one in backends:
        lines += [f"backend {one.service}", f"    option httpchk GET {one.health}"]
        if gateway.affinity == "session":
            lines += [
                f"    balance hdr({gateway.header})",
                "    hash-type consistent sdbm avalanche",
                # A session's replica that has twice its share of all open requests is passed over: another's cache is cold,
                # but what waits for one replica alone waits while others are idle.
                "    hash-balance-factor 200",
            ]
        else:
            lines.append("    balance leastconn")
        limit = f"maxconn {most_at_once(one.slots, gateway)}"
        # Those that are gone have the fewest requests and are asked first, until each has refused often enough to be out: the
        # last one that is busy is asked after all of them. Then, or where there is none, once a second.
        lines.append(f"    retries {_REFUSALS * one.most + (hold_seconds if sleeps else _WAITS)}")
        if sleeps:
            # The Service's address is there before any replica is, and refuses until then.
            lines += [
                f"    server held {one.service}.{namespace}.{domain}:80 backup {limit} {resolve} init-addr libc,none",
            ]
        lines += [
            f"    default-server check inter 2s fall 3 rise 2 {_OBSERVED} {limit} {resolve} init-addr none",
            f"    server-template pod {one.most} {one.service}-pods.{namespace}.{domain}:{one.port}",
        ]
    return "\n".join(lines) + "\n"


def most_at_once(slots: int, gateway: stacks.Gateway) -> int:
    """Requests that one proxy sends one replica at the same time: its part of the replica's slots and of the headroom.

    The proxies know nothing of each other: together they send a replica at most one request each more than that.
    """
    return max(1, math.ceil(round(slots * (1 + gateway.headroom) / gateway.replicas, 6)))


# The idlest replica is often one that is gone: it is out after a few refused connections, sooner than checks and names say so.
_REFUSALS = 3
_OBSERVED = f"observe layer4 error-limit {_REFUSALS} on-error mark-down"
# Seconds for a replica that is alone and begins again.
_WAITS = 10
# Where a node of the embedded cluster answers for names (docs/architecture.md).
_EMBEDDED_DNS_PORT = 10053
_RESOLVING = (
    "    accepted_payload_size 8192",
    "    hold valid 1s",
    "    hold obsolete 2s",
)
