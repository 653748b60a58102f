"""When an object counts as ready: pure judgements on live objects, with words for what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._errors import ProviderError
from ._kinds import Kind

Object = dict[str, Any]


@dataclass(frozen=True)
class State:
    """`ready`; or `failed` for good; else `message` says what is waited for."""

    ready: bool
    message: str = ""
    failed: bool = False


READY = State(True)


def condition(live: Object, kind: str) -> dict[str, Any]:
    """The condition of that type, or an empty one."""
    for item in (live.get("status") or {}).get("conditions") or []:
        if item.get("type") == kind:
            return dict(item)
    return {}


def _true(live: Object, kind: str) -> bool:
    return condition(live, kind).get("status") == "True"


def _observed(live: Object) -> bool:
    return int((live.get("status") or {}).get("observedGeneration") or 0) >= int(
        live["metadata"].get("generation") or 0
    )


def _deployment(live: Object) -> State:
    spec, status = live.get("spec") or {}, live.get("status") or {}
    if spec.get("paused"):
        return READY
    want = int(spec.get("replicas", 1))
    total, updated = int(status.get("replicas") or 0), int(status.get("updatedReplicas") or 0)
    available = int(status.get("availableReplicas") or 0)
    if _observed(live) and updated >= want and total <= updated and available >= want:
        return READY
    message = f"{available}/{want} pods available"
    if _observed(live) and updated < want:
        message += f", {updated}/{want} updated"
    elif total > updated:
        message += f", {total - updated} old to go"
    progress = condition(live, "Progressing")
    if progress.get("reason") == "ProgressDeadlineExceeded":
        message += " (progress deadline exceeded)"
    failure = condition(live, "ReplicaFailure")
    if failure.get("status") == "True":
        message += f"; {failure.get('message', '')}"
    return State(False, message)


def _stateful_set(live: Object) -> State:
    spec, status = live.get("spec") or {}, live.get("status") or {}
    strategy = spec.get("updateStrategy") or {}
    want = int(spec.get("replicas", 1))
    ready = int(status.get("readyReplicas") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
    to_update = 0 if strategy.get("type") == "OnDelete" else max(0, want - partition)
    current = status.get("currentRevision") == status.get("updateRevision")
    if _observed(live) and ready >= want and (current or updated >= to_update):
        return READY
    return State(False, f"{ready}/{want} pods ready" + ("" if current else f", {updated}/{to_update} updated"))


def _daemon_set(live: Object) -> State:
    status = live.get("status") or {}
    want = int(status.get("desiredNumberScheduled") or 0)
    updated, available = int(status.get("updatedNumberScheduled") or 0), int(status.get("numberAvailable") or 0)
    on_delete = ((live.get("spec") or {}).get("updateStrategy") or {}).get("type") == "OnDelete"
    if _observed(live) and available >= want and (updated >= want or on_delete):
        return READY
    return State(False, f"{available}/{want} pods available" if _observed(live) else "not seen by its controller yet")


def _replica_set(live: Object) -> State:
    want = int((live.get("spec") or {}).get("replicas", 1))
    ready = int((live.get("status") or {}).get("readyReplicas") or 0)
    return READY if _observed(live) and ready >= want else State(False, f"{ready}/{want} pods ready")


def _pod(live: Object) -> State:
    phase = (live.get("status") or {}).get("phase")
    if phase == "Succeeded" or (phase == "Running" and _true(live, "Ready")):
        return READY
    return State(False, trouble(live) or f"phase {phase or 'Pending'}", failed=phase == "Failed")


def _job(live: Object) -> State:
    spec, status = live.get("spec") or {}, live.get("status") or {}
    if spec.get("suspend") or _true(live, "Complete"):
        return READY
    if _true(live, "Failed"):
        why = condition(live, "Failed")
        return State(False, f"the Job failed: {why.get('reason', '')}: {why.get('message', '')}", failed=True)
    want = spec.get("completions") or 1
    message = f"{status.get('succeeded') or 0}/{want} completions, {status.get('active') or 0} active"
    return State(False, message + (f", {status['failed']} failed" if status.get("failed") else ""))


def _claim(live: Object) -> State:
    phase = (live.get("status") or {}).get("phase")
    if phase == "Bound":
        return READY
    return State(False, f"phase {phase or 'Pending'}", failed=phase == "Lost")


def _namespace(live: Object) -> State:
    phase = (live.get("status") or {}).get("phase")
    return READY if phase == "Active" else State(False, f"phase {phase or 'unknown'}")


def _node(live: Object) -> State:
    if _true(live, "Ready"):
        return READY
    why = condition(live, "Ready")
    return State(False, f"node is not Ready: {why.get('message') or 'its kubelet has not reported yet'}")


def _definition(live: Object) -> State:
    if _true(live, "Established"):
        return READY
    names = condition(live, "NamesAccepted")
    if names.get("status") == "False":
        return State(False, f"names not accepted: {names.get('message', '')}", failed=True)
    return State(False, "not established yet")


def _api_service(live: Object) -> State:
    if _true(live, "Available"):
        return READY
    return State(False, f"not available: {condition(live, 'Available').get('message') or 'not checked yet'}")


_JUDGES: dict[tuple[str, str], Callable[[Object], State]] = {
    ("apps", "Deployment"): _deployment,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("apps", "ReplicaSet"): _replica_set,
    ("batch", "Job"): _job,
    ("", "Pod"): _pod,
    ("", "ReplicationController"): _replica_set,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _definition,
    ("apiregistration.k8s.io", "APIService"): _api_service,
}


def judge_for(kind: Kind) -> Callable[[Object], State] | None:
    """The judgement for a kind from the object alone; None where it is ready once it exists."""
    return _JUDGES.get((kind.group, kind.kind))


def wants_endpoints(service: Object) -> bool:
    """Whether a Service is ready only with endpoints.

    Headless ones are not waited for: a StatefulSet needs its headless Service before it has any pod.
    """
    spec = service.get("spec") or {}
    return bool(spec.get("selector")) and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None"


def service_state(service: Object, slices: list[Object]) -> State:
    """A Service with its EndpointSlices."""
    spec = service.get("spec") or {}
    if spec.get("type") == "LoadBalancer" and not ((service.get("status") or {}).get("loadBalancer") or {}).get(
        "ingress"
    ):
        return State(False, "no load balancer address yet")
    if not wants_endpoints(service):
        return READY
    ready = sum(
        1
        for item in slices
        for endpoint in item.get("endpoints") or []
        if (endpoint.get("conditions") or {}).get("ready") is not False
    )
    return READY if ready else State(False, "no ready endpoints: no ready pod matches its selector")


def trouble(pod: Object) -> str:
    """What keeps a pod from being ready, in a few words; empty where nothing is known to."""
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = container.get("state") or {}
        for form in ("waiting", "terminated"):
            reason = (state.get(form) or {}).get("reason")
            if reason and reason not in ("ContainerCreating", "PodInitializing", "Completed"):
                detail = (state[form].get("message") or "").strip()
                code = state[form].get("exitCode")
                text = f"{container.get('name')}: {reason}" + (f" (exit code {code})" if code is not None else "")
                last = ((container.get("lastState") or {}).get("terminated")) or {}
                if form == "waiting" and last.get("exitCode") is not None:
                    text += f" (last exit code {last['exitCode']})"
                return text + (f": {detail[:200]}" if detail else "")
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"not scheduled: {str(scheduled.get('message', ''))[:240]}"
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message', '')}"
    if status.get("phase") == "Running" and not _true(pod, "Ready"):
        return "running, not ready yet"
    return ""


_CONDITION = re.compile(r"^condition=(\w[\w./-]*)(?:=(\w+))?$")
_JSONPATH = re.compile(r"^jsonpath=(?:\{(.+)\}|([^={}]+))(?:=(.*))?$", re.S)
_STEP = re.compile(
    r"\.([A-Za-z_][\w-]*)|\[['\"]([^'\"]+)['\"]\]|\[(\d+|\*)\]|\[\?\(@\.([\w]+)\s*==\s*['\"]([^'\"]*)['\"]\)\]"
)


def wait_for(text: str) -> Callable[[Object], State]:
    """The judgement that the annotation `pulumi.com/waitFor` asks for: `condition=Type[=Status]`,
    `jsonpath={.path}[=value]`, or a JSON list of those (all have to hold). Raises ProviderError."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = text
    wanted = [str(item) for item in parsed] if isinstance(parsed, list) else [text]
    tests = [_test(item.strip()) for item in wanted]

    def judge(live: Object) -> State:
        for test in tests:
            state = test(live)
            if not state.ready:
                return state
        return READY

    return judge


def _test(text: str) -> Callable[[Object], State]:
    if found := _CONDITION.match(text):
        kind, want = found.group(1), found.group(2) or "True"
        return lambda live: (
            READY
            if str(condition(live, kind).get("status", "")).lower() == want.lower()
            else State(
                False, f"condition {kind} is {condition(live, kind).get('status', 'absent')}, waiting for {want}"
            )
        )
    if text.startswith("jsonpath=") and (found := _JSONPATH.match(text)):
        path, want_value = found.group(1) or found.group(2), found.group(3)
        steps = _steps(path)

        def test(live: Object) -> State:
            values = _walk(live, steps)
            if want_value is None:
                return READY if values else State(False, f"{path} is absent")
            if any(_text(value) == want_value for value in values):
                return READY
            return State(False, f"{path} is {', '.join(map(_text, values)) or 'absent'}, waiting for {want_value}")

        return test
    raise ProviderError(
        f"pulumi.com/waitFor: {text!r} is not understood; allowed: condition=Type, condition=Type=Status, "
        "jsonpath={.path}, jsonpath={.path}=value, or a JSON list of those"
    )


def _steps(path: str) -> list[tuple[str, ...]]:
    text = path if path.startswith((".", "[")) else "." + path
    steps, at = [], 0
    while at < len(text):
        found = _STEP.match(text, at)
        if not found:
            raise ProviderError(f"pulumi.com/waitFor: the JSONPath {path!r} is not understood at {text[at:]!r}")
        steps.append(tuple(part or "" for part in found.groups()))
        at = found.end()
    return steps


def _walk(value: Any, steps: list[tuple[str, ...]]) -> list[Any]:
    found = [value]
    for name, quoted, index, key, wanted in steps:
        reached: list[Any] = []
        for item in found:
            if (name or quoted) and isinstance(item, dict) and (name or quoted) in item:
                reached.append(item[name or quoted])
            elif isinstance(item, list):
                if index == "*":
                    reached += item
                elif index and int(index) < len(item):
                    reached.append(item[int(index)])
                elif key:
                    reached += [part for part in item if isinstance(part, dict) and str(part.get(key)) == wanted]
        found = reached
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
