"""Whether a stack's queries will really scale it, asked of the live Prometheus while the stack is deployed.

KEDA counts no answer as idle or as an error for ever, several as an error, and a ScaledObject with either looks healthy in a
list. So each query is asked once before it is handed over, and what is wrong is told apart from what is only not there yet:
a metric that no replica publishes because there is none (scale from zero), and one that replicas do not publish.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import stacks

from .autoscaler_policy import Trigger

# A pod that is Ready is found by Prometheus' discovery and scraped within this, and its operator has loaded new rules.
SCRAPED_WITHIN_SECONDS = 90.0
_TAKEN_OVER_SECONDS = 30.0
_EVERY_SECONDS = 1.0
_NEAR = re.compile(r"[a-z]{5,}")

Series = Mapping[str, Any]
Ask = Callable[[str], Sequence[Series]]
Get = Callable[[str], dict[str, Any]]


class WrongQuery(stacks.TollgateError):
    """A query that would never scale. The message says which, what it gave, and what to do."""


@dataclass(frozen=True)
class Fault:
    """Why a query would not scale. `final`: waiting for the next scrape cannot help."""

    reason: str
    final: bool = False


def judge(trigger: Trigger, ask: Ask, namespace: str, *, replicas_min: int) -> Fault | None:
    """None if the query is good; else what is wrong. Raises TollgateError where Prometheus does not answer.

    "Good" is one series. Of what is missing, the reason says whether Prometheus scrapes any replica at all and what its
    metrics are called that look alike.
    """
    pods = ask(f'up{{namespace="{namespace}",pod=~"engine.*"}} == 1')
    for metric in trigger.metrics:
        if ask(f'{metric}{{namespace="{namespace}"}}'):
            continue
        if not trigger.always and not pods and replicas_min == 0:
            # Nobody serves yet: the gateway's metric wakes the service, and this one appears with the first replica.
            continue
        if not pods and not trigger.always:
            return Fault(
                f"Prometheus scrapes no replica in {namespace} (no `up` of theirs), so {metric} is not there\n"
                "  fix:     kubectl get podmonitor -n " + namespace + "; does Prometheus select it?"
            )
        return Fault(_unknown(metric, ask, namespace, len(pods)))
    answer = ask(trigger.query)
    if len(answer) == 1:
        return None
    if not answer:
        return Fault(
            f"it gives no series: {trigger.query}\n"
            "  fix:     compare its names and labels with what Prometheus has; wrap it in `(…) or vector(0)` only "
            "if no series really means no demand"
        )
    labels = [", ".join(f'{k}="{v}"' for k, v in sorted(one.get("metric", {}).items())) for one in answer[:3]]
    return Fault(
        f"it gives {len(answer)} series where KEDA needs one: {trigger.query}\n"
        + "".join(f"           {{{one}}}\n" for one in labels)
        + "  fix:     wrap it in sum(…) or max(…)",
        final=True,
    )


def _unknown(metric: str, ask: Ask, namespace: str, pods: int) -> str:
    """A metric that is not published, with those that look alike: an engine's new version may have renamed it."""
    words = [word for word in _NEAR.findall(metric.rpartition(":")[2]) if word not in ("requests", "total", "seconds")]
    near: list[str] = []
    for word in sorted(words, key=len, reverse=True)[:2]:
        found = ask(f'count by (__name__) ({{namespace="{namespace}",__name__=~".*{word}.*"}})')
        near += [str(one["metric"].get("__name__", "")) for one in found]
    names = [
        name for name in dict.fromkeys(sorted(near)) if name and not name.endswith(("_created", "_bucket", "_sum"))
    ]
    alike = f"; what looks alike there: {', '.join(names[:4])}" if names else ""
    return (
        f"{pods} scraped pods of {namespace} publish no {metric}{alike}\n"
        "  fix:     a new version of the engine may have renamed it: state the new name in components/engines/, or go back"
    )


def verify(
    asked: Sequence[Trigger],
    ask: Ask,
    namespace: str,
    *,
    replicas_min: int,
    seconds: float = SCRAPED_WITHIN_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Asks each query until it is good, for up to `seconds`: a new pod is scraped a little later. Raises WrongQuery."""
    end = time.monotonic() + seconds
    for trigger in asked:
        while True:
            fault = judge(trigger, ask, namespace, replicas_min=replicas_min)
            if fault is None:
                break
            if fault.final or time.monotonic() >= end:
                what = f"autoscaling of {namespace}: the query {trigger.name!r} would never scale"
                raise WrongQuery(f"{what}: {fault.reason}")
            sleep(_EVERY_SECONDS)


def others(get: Get, namespace: str, scaled: str) -> list[str]:
    """Autoscalers of the same target that are not ours, as `kind/name`. Two of them would fight for ever."""
    found = []
    hpas = get(f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers").get("items") or []
    objects = get(f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects").get("items") or []
    for one in hpas:
        owners = [owner.get("name") for owner in one["metadata"].get("ownerReferences") or []]
        if one["spec"]["scaleTargetRef"]["name"] == scaled and scaled not in owners:
            found.append(f"HorizontalPodAutoscaler/{one['metadata']['name']}")
    for one in objects:
        if one["spec"]["scaleTargetRef"]["name"] == scaled and one["metadata"]["name"] != scaled:
            found.append(f"ScaledObject/{one['metadata']['name']}")
    return found


def refuse_others(get: Get, namespace: str, scaled: str) -> None:
    """Raises TollgateError naming a second autoscaler of the target."""
    found = others(get, namespace, scaled)
    if found:
        raise stacks.TollgateError(
            f"autoscaling of {namespace}/{scaled}: {', '.join(found)} scales it too, and the two would undo each other's work\n"
            f"  fix:     kubectl delete -n {namespace} {found[0].replace('/', ' ').lower()}, or fix the number of nodes here"
        )


def measured_cold_start(get: Get, namespace: str, service: str) -> float | None:
    """Seconds from creation to Ready, the least of the service's Ready pods that have never restarted; None without one.

    The least: a pod that was unready for a moment since counts from then, and nothing tells it apart from a slow start.
    """
    selector = quote(f"app.kubernetes.io/instance={service}", safe="")
    took = []
    for pod in get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}").get("items") or []:
        status = pod.get("status") or {}
        if any(one.get("restartCount") for one in status.get("containerStatuses") or ()):
            continue
        for one in status.get("conditions") or ():
            if one["type"] == "Ready" and one["status"] == "True":
                took.append(_moment(one["lastTransitionTime"]) - _moment(pod["metadata"]["creationTimestamp"]))
    return max(0.0, min(took)) if took else None


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def too_soon(cooldown_seconds: float, measured: float | None) -> str:
    """What to say where replicas are taken away sooner than they have been seen to start; empty where all is well."""
    if measured is None or cooldown_seconds >= measured:
        return ""
    return (
        f"a replica took {measured:.0f} s from its creation to Ready, and is taken away after {cooldown_seconds:.0f} s of quiet: "
        f"what wakes one up may find it gone\n  fix:     set autoscaling.cold_start_seconds to {math.ceil(measured)}"
    )


def taken_over(
    get: Get,
    namespace: str,
    name: str,
    *,
    seconds: float = _TAKEN_OVER_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once KEDA says that the ScaledObject is Ready. Raises TollgateError with what it says instead."""
    end, path = time.monotonic() + seconds, f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects/{name}"
    while True:
        conditions = {one["type"]: one for one in (get(path).get("status") or {}).get("conditions") or []}
        ready = conditions.get("Ready", {})
        if ready.get("status") == "True":
            return
        if time.monotonic() >= end:
            said = ready.get("message") or "nothing at all: is its operator up? kubectl get pods -n keda"
            raise stacks.TollgateError(f"autoscaling of {namespace}/{name}: KEDA has not taken it over; it says {said}")
        sleep(_EVERY_SECONDS)


class Live:
    """Prometheus and the API of one cluster, both by kubectl, so that credentials are the user's.

    `prometheus_url`: inside of the cluster; it is reached through the API server's proxy. `embedded`: the API server passes
    on to pods alone, which Prometheus is not there, but Services' addresses are this machine's.
    """

    def __init__(self, prometheus_url: str, *, kubeconfig: str = "", context: str = "", embedded: bool = False) -> None:
        parts = urlsplit(prometheus_url)
        name, namespace = (parts.hostname or "").split(".")[:2]
        self._service, self._port = f"/api/v1/namespaces/{namespace}/services/{name}", parts.port or 80
        self._embedded = embedded
        self._url, self._kubeconfig, self._context = prometheus_url, kubeconfig, context

    def get(self, path: str) -> dict[str, Any]:
        """What the API server answers to a GET. Raises TollgateError."""
        # Late: a program that only registers resources needs no kubectl.
        from bench.pods import Kubectl

        with _file(self._kubeconfig) as path_of_config:
            environment = dict(os.environ) | ({"KUBECONFIG": path_of_config} if path_of_config else {})
            kubectl = Kubectl(environment=environment, namespace="default", context=self._context)
            found = json.loads(kubectl.run("get", "--raw", path, seconds=30))
        return found if isinstance(found, dict) else {}

    def ask(self, query: str) -> Sequence[Series]:
        """The series that Prometheus has for the query now. Raises TollgateError where it is away, WrongQuery if it refuses."""
        try:
            answer = self._answer(f"/api/v1/query?query={quote(query, safe='')}")
        except stacks.TollgateError as error:
            if any(word in str(error) for word in ("bad_data", "parse error", "Bad Request", "could not understand")):
                raise WrongQuery(f"autoscaling: Prometheus cannot read the query {query}\n  {error}") from None
            raise stacks.TollgateError(
                f"autoscaling: {self._url} does not answer, so no query can be checked\n  {error}\n"
                "  fix:     see that Prometheus runs there, or name another in autoscaling.prometheus"
            ) from None
        found = (answer.get("data") or {}).get("result") or []
        # A scalar or a string is no series at all.
        return found if (answer.get("data") or {}).get("resultType") == "vector" else []

    def _answer(self, path: str) -> dict[str, Any]:
        if not self._embedded:
            return self.get(f"{self._service}:{self._port}/proxy{path}")
        address = self.get(self._service)["spec"]["clusterIP"]
        # Not through anybody's proxy: the address is of this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{address}:{self._port}{path}", timeout=10) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise stacks.TollgateError(error.read().decode(errors="replace")) from None
        except OSError as error:
            raise stacks.TollgateError(str(error)) from None
        return found if isinstance(found, dict) else {}


@contextmanager
def _file(text: str) -> Iterator[str]:
    if not text:
        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(text)
        yield str(path)
