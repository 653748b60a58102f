"""A monitor that sees what plain mocks do not: parents, protection, ignored fields, providers, outputs, secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pulumi
from google.protobuf import struct_pb2
from pulumi.runtime import mocks, rpc

_SECRET = "4dabf18193072939515e22adb298388d"
# What the real provider would compute.
_COMPUTED: dict[str, dict[str, Any]] = {
    "gcp:container/cluster:Cluster": {
        "endpoint": "203.0.113.1",
        "masterAuth": {"clusterCaCertificate": "Y2E=", "clientCertificate": "", "clientKey": ""},
    },
    "gcp:compute/address:Address": {"address": "203.0.113.9"},
    "gcp:compute/healthCheck:HealthCheck": {"selfLink": "https://compute/check"},
    "gcp:serviceaccount/account:Account": {
        "email": "nodes@my-project.iam",
        "member": "serviceAccount:nodes@my-project.iam",
    },
    "kubernetes:batch/v1:Job": {"status": {"succeeded": 1}},
}
_ANSWERS = {
    "gcp:organizations/getProject:getProject": {"number": "1234567890"},
    "gcp:container/getCluster:getCluster": {
        "endpoint": "203.0.113.2",
        "masterAuths": [{"clusterCaCertificate": "Y2E=", "clientCertificate": "", "clientKey": ""}],
    },
}


class _Answers(mocks.Mocks):
    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        return f"{args.name}-id", {**args.inputs, **_COMPUTED.get(args.typ, {})}

    def call(self, args: mocks.MockCallArgs) -> dict[str, Any]:
        return _ANSWERS[args.token]


@dataclass(frozen=True, kw_only=True)
class Made:
    """One registered resource. `inputs`: plain, secrets unwrapped; `secret`: names of inputs that are secrets."""

    type: str
    name: str
    inputs: dict[str, Any]
    parent: str
    protect: bool
    ignore: tuple[str, ...]
    provider: str
    depends_on: tuple[str, ...]
    secret: frozenset[str]
    timeouts: str


@dataclass
class Recording:
    """What a program registered. `outputs`: of components, by name."""

    made: list[Made] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Made]:
        """All whose type ends with that word."""
        return [one for one in self.made if one.type.rpartition(":")[2] == kind]

    def one(self, kind: str, name: str | None = None) -> Made:
        (found,) = (one for one in self.of(kind) if name is None or one.name == name)
        return found


class _Monitor(mocks.MockMonitor):
    def __init__(self, recording: Recording) -> None:
        super().__init__(_Answers())
        self._recording = recording

    def RegisterResource(self, request: Any) -> Any:
        if request.type != "pulumi:pulumi:Stack":
            secret = frozenset(key for key, value in request.object.items() if _is_secret(value))
            self._recording.made.append(
                Made(
                    type=request.type,
                    name=request.name,
                    inputs=_plain(rpc.deserialize_properties(request.object)),
                    parent=request.parent.rpartition("::")[2],
                    protect=bool(request.protect),
                    ignore=tuple(request.ignoreChanges),
                    provider=request.provider.rpartition("::")[0].rpartition("::")[2],
                    depends_on=tuple(sorted(urn.rpartition("::")[2] for urn in request.dependencies)),
                    secret=secret,
                    timeouts=str(request.customTimeouts.create),
                )
            )
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]

    def RegisterResourceOutputs(self, request: Any) -> Any:
        name = request.urn.rpartition("::")[2]
        self._recording.outputs[name] = _plain(rpc.deserialize_properties(request.outputs))
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]


def record(
    program: Callable[[], Any],
    *,
    preview: bool = False,
    config: dict[str, str] | None = None,
    into: Recording | None = None,
) -> Recording:
    """Run the program to its end and return what it registered, also in `into`. Raises what it raises."""
    recording = into if into is not None else Recording()
    # Each run has a loop of its own (pulumi#24338), and nothing of the run before.
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(_Answers(), project="tollgate", stack="test", preview=preview, monitor=_Monitor(recording))
    pulumi.runtime.set_all_config(config or {}, list(config or {}))
    try:
        pulumi.runtime.test(lambda: (program(), None)[1])()  # type: ignore[no-untyped-call]
    finally:
        pulumi.runtime.set_all_config({})
    return recording


def _is_secret(value: Any) -> bool:
    """Whether a secret is somewhere in it."""
    if isinstance(value, struct_pb2.Struct):
        return _SECRET in value.fields or any(_is_secret(entry) for entry in value.values())
    return False


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _SECRET in value:
            return _plain(value.get("value"))
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool) or value is None else None
