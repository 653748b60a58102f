"""What a stack stands on and how its service is offered there: cluster, serving, gateway, DNS. Never promoted."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ._base import Image, Model, Name, Positive

# What a cluster has beside Kubernetes itself. On `target: gke` the stack installs keda, prometheus, lws and kueue, but not
# what is named here: an adopted cluster may have it already.
Capability = Literal[
    "coscheduling",
    "gateway-api",
    "gcs-fuse",
    "gpu-operator",
    "inference-extension",
    "keda",
    "kuberay",
    "kueue",
    "lws",
    "prometheus",
]
Day = Literal["MO", "TU", "WE", "TH", "FR", "SA", "SU"]


class Maintenance(Model):
    """When Google may upgrade: `hours` from `start` (UTC) on these days. GKE asks for 48 hours within 32 days."""

    start: Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = "02:00"
    hours: Annotated[int, Field(ge=4, le=24)] = 6
    days: Annotated[tuple[Day, ...], Field(min_length=1)] = ("SA", "SU")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        total = self.hours * len(set(self.days)) * 32 / 7
        if total < 48:
            raise ValueError(f"{total:.0f} hours in 32 days; GKE needs 48: more days, or more hours")
        return self


class Gke(Model):
    """The GKE clusters of a stack, one per region.

    `adopt`: use existing clusters instead of making them. `names`: by region, where a cluster is not to be called
    `<tollgate:cluster>-<region>` (`<tollgate:cluster>`, if the one of one region is adopted). `network`, `subnetwork`: where;
    Google's default network if absent. `pods_range`, `services_range`: names of secondary ranges; absent: GKE makes some.
    `private_endpoint`: no public API address at all. `authorized_networks`: CIDRs that may reach the API. `nat`: make a Cloud
    NAT, without which private nodes reach no registry but Google's.
    """

    adopt: bool = False
    names: dict[Name, Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")]] = Field(default_factory=dict)
    network: str | None = None
    subnetwork: str | None = None
    pods_range: Name | None = None
    services_range: Name | None = None
    release_channel: Literal["rapid", "regular", "stable", "extended"] = "regular"
    private_endpoint: bool = False
    nat: bool = True
    authorized_networks: tuple[str, ...] = ()
    maintenance: Maintenance = Maintenance()
    deletion_protection: bool = True
    system_machine_type: Name = "e2-standard-4"

    @field_validator("authorized_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if ipaddress.ip_network(entry).prefixlen == 0:
                raise ValueError(f"{entry} is everybody; name the networks that may reach the API")
        return value

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if (self.pods_range is None) != (self.services_range is None):
            raise ValueError("name both pods_range and services_range, or neither")
        if self.pods_range and not self.subnetwork:
            raise ValueError("secondary ranges belong to a subnetwork: name it too")
        if not self.adopt and len(set(self.names.values())) < len(self.names):
            raise ValueError("names gives two clusters one name; what belongs to them in the project would be one, too")
        return self


class Cache(Model):
    """Where weights are kept between pods.

    `pvc`: a claim of `gb` (`storage_class`, `access_mode`); `hostpath`: a folder of each node; `gcs`: a bucket through Cloud
    Storage FUSE. `preload`: a Job fetches the model before the first pod starts (pvc and gcs; a folder fills itself).
    """

    kind: Literal["pvc", "hostpath", "gcs"]
    gb: Annotated[int, Field(ge=1, le=65_536)] = 200
    storage_class: Name | None = None
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"] = "ReadWriteMany"
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.-]+$")] = "/var/lib/tollgate/models"
    bucket: Name | None = None
    preload: bool = True

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "gcs" and not self.bucket:
            raise ValueError("cache gcs needs the name of a bucket")
        if self.kind != "gcs" and self.bucket:
            raise ValueError(f"a bucket is for cache gcs, not {self.kind}")
        if self.kind == "pvc" and self.access_mode == "ReadOnlyMany" and self.preload:
            raise ValueError("a ReadOnlyMany claim cannot be filled by the preload Job: set preload to false")
        return self


class Group(Model):
    """Replicas that span nodes: who keeps their pods together, and who starts them all or none.

    `gang`: `coscheduling` (scheduler-plugins' PodGroup), `kueue` (admission through `queue`), or none.
    """

    controller: Literal["lws", "kuberay"] = "lws"
    gang: Literal["coscheduling", "kueue"] | None = None
    queue: Name | None = None
    scheduler: Name = "scheduler-plugins-scheduler"

    @model_validator(mode="after")
    def _queued(self) -> Self:
        if (self.gang == "kueue") != (self.queue is not None):
            raise ValueError("gang kueue needs the name of a LocalQueue in queue, and only that does")
        return self


class Serving(Model):
    """How the engine's pods are run here.

    `simulate`: our simulator in the engine's dialect instead of the engine, for clusters without GPUs. `priority`: value of
    the pods' PriorityClass. `api_key`, `hugging_face_token`: taken from the stack's secrets `secrets:apiKey` and
    `secrets:huggingFaceToken`, or from `secret`, an existing Secret with the keys `api-key` and `hugging-face-token`.
    `pod_security`: the level that the namespace enforces. `digests_only`: refuse an image that is named by tag alone.
    `drain_seconds`: a stopping pod finishes its streams this long.
    """

    simulate: bool = False
    cache: Cache | None = None
    priority: Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)] | None = None
    api_key: bool = False
    hugging_face_token: bool = False
    secret: Name | None = None
    network_policy: bool = True
    pod_security: Literal["restricted", "baseline", "privileged"] = "restricted"
    digests_only: bool = False
    drain_seconds: Annotated[int, Field(ge=5, le=3600)] = 60
    group: Group = Group()

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        if self.cache is not None and self.cache.kind == "hostpath" and self.pod_security != "privileged":
            raise ValueError("cache hostpath mounts a folder of the node, which only pod_security privileged allows")
        if self.secret and not (self.api_key or self.hugging_face_token):
            raise ValueError("secret is named, but neither api_key nor hugging_face_token is on")
        return self


class Candidate(Model):
    """A second release behind the same gateway, given `percent` of the requests: a rollout by steps, or a comparison."""

    release: Name
    percent: Annotated[float, Field(ge=0, le=100)]


class Gateway(Model):
    """What stands before the engine.

    `proxy`: HAProxy, fewest connections first, a backend is out after three failed checks. `inference-extension`: the
    cluster's Gateway (`gateway` names it) and an InferencePool. `affinity: session`: requests with the same `header` go to
    the same replica, by consistent hashing (proxy only). `headroom`: what the proxy sends a replica beyond its slots, as a
    share of them, so that it never idles; whatever is more waits in the proxy for the replica that is free first (proxy
    only). `image`: the proxy's.
    """

    kind: Literal["proxy", "inference-extension"] = "proxy"
    replicas: Annotated[int, Field(ge=1, le=50)] = 2
    affinity: Literal["none", "session"] = "none"
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,60}$")] = "x-session-id"
    headroom: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.1
    external: bool = False
    gateway: Name | None = None
    candidate: Candidate | None = None
    image: Image = "haproxy:3.2-alpine"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "inference-extension" and not self.gateway:
            raise ValueError("kind inference-extension needs the name of the cluster's Gateway in gateway")
        if self.kind == "inference-extension" and self.affinity == "session":
            raise ValueError("affinity session is the proxy's; the inference extension chooses by cache and load")
        if self.external and self.kind != "proxy":
            raise ValueError("external is for kind proxy; a Gateway has an address of its own")
        return self


class Shift(Model):
    """A move of weights towards `to`, `percent` of the way: raise it step by step, and every step is one reviewed line."""

    to: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    percent: Annotated[float, Field(ge=0, le=100)]


class Dns(Model):
    """One name over all regions: Cloud DNS by weight or by the asker's place, to regions whose health check passes.

    `zone`: the managed zone. `weights`: per region, all equal if absent; `shift`: see Shift (weighted only).
    """

    zone: Name
    name: Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,}$")]
    policy: Literal["weighted", "geographic"] = "weighted"
    weights: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    shift: Shift | None = None
    ttl_seconds: Annotated[int, Field(ge=5, le=3600)] = 30
    check_seconds: Positive = 30

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policy == "geographic" and (self.weights or self.shift):
            raise ValueError("policy geographic goes by place: weights and shift are for policy weighted")
        if self.weights and not any(self.weights.values()):
            raise ValueError("all weights are 0: nobody would get an answer")
        if self.shift and not any(self.shift.to.values()):
            raise ValueError("all weights of shift.to are 0: nobody would get an answer")
        return self

    def weights_of(self, regions: tuple[str, ...]) -> dict[str, float]:
        """The share of each region in force, their sum 1. Raises ValueError for regions that the fleet does not have."""
        unknown = sorted({*self.weights, *(self.shift.to if self.shift else ())} - set(regions))
        if unknown:
            raise ValueError(f"weight for {unknown[0]}, which is none of the fleet's regions {', '.join(regions)}")
        start = _shares({region: self.weights.get(region, 0.0 if self.weights else 1.0) for region in regions})
        if self.shift is None:
            return start
        goal = _shares({region: self.shift.to.get(region, 0.0) for region in regions})
        part = self.shift.percent / 100
        return {region: start[region] * (1 - part) + goal[region] * part for region in regions}


def _shares(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {region: weight / total for region, weight in weights.items()}
