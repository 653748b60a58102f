"""A Pulumi provider that accepts everything and writes down what it is asked: the real engine's view of a program, offline.

Run as `python recording_plugin.py <engine address>` by an executable named pulumi-resource-<name>. Each line of the file named
by $RECORDED is one operation as JSON: {"op", "type", "name", "inputs"}. Outputs of made resources are their inputs, an id and
what the official provider would compute; in previews that is unknown, as it is with the official ones. A change of what names
or places a resource replaces it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
# What the program reads of resources, by type.
_AUTH = {"clusterCaCertificate": "Y2E=", "clientCertificate": "", "clientKey": ""}
_COMPUTED: dict[str, dict[str, Any]] = {
    "gcp:container/cluster:Cluster": {"endpoint": "203.0.113.1", "masterAuth": _AUTH},
    "gcp:compute/address:Address": {"address": "203.0.113.9"},
    "gcp:compute/healthCheck:HealthCheck": {"selfLink": "https://compute/check"},
    "gcp:serviceaccount/account:Account": {
        "email": "nodes@my-project.iam",
        "member": "serviceAccount:nodes@my-project.iam",
    },
    "kubernetes:batch/v1:Job": {"status": {"succeeded": 1}},
}
_FIXED = ("accountId", "cluster", "location", "member", "name", "namespace", "project", "region", "role")
_ANSWERS: dict[str, dict[str, Any]] = {
    "gcp:organizations/getProject:getProject": {"number": "1234567890", "id": "project", "projectId": "my-project"},
    "gcp:container/getCluster:getCluster": {
        "endpoint": "203.0.113.1",
        "masterAuths": [_AUTH],
        "id": "adopted",
    },
}
_lock = threading.Lock()


def record(**line: Any) -> None:
    with _lock, Path(os.environ["RECORDED"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    def Handshake(self, request: Any, context: Any) -> Any:
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="10.2.0")

    def GetSchema(self, request: Any, context: Any) -> Any:
        return provider_pb2.GetSchemaResponse(schema=json.dumps({"name": "recorded", "version": "10.2.0"}))

    def CheckConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Check(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:
        old, new = json_format.MessageToDict(request.old_inputs), json_format.MessageToDict(request.news)
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        # Kubernetes has names and namespaces one level deeper.
        before, after = old.get("metadata", {}), new.get("metadata", {})
        moved = [f"metadata.{key}" for key in ("name", "namespace") if before.get(key) != after.get(key)]
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE,
            diffs=changed,
            replaces=[key for key in changed if key in _FIXED] + moved,
        )

    def Update(self, request: Any, context: Any) -> Any:
        return provider_pb2.UpdateResponse(properties=request.news)

    def Create(self, request: Any, context: Any) -> Any:
        kind = request.urn.split("::")[2].split("$")[-1]
        name = request.urn.rpartition("::")[2]
        inputs = json_format.MessageToDict(request.properties)
        record(op="create", type=kind, name=name, preview=request.preview, inputs=inputs)
        response = provider_pb2.CreateResponse(id="" if request.preview else f"{name}-id")
        response.properties.CopyFrom(request.properties)
        computed = _COMPUTED.get(kind, {})
        response.properties.update(dict.fromkeys(computed, UNKNOWN) if request.preview else computed)
        return response

    def Read(self, request: Any, context: Any) -> Any:
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties)

    def Invoke(self, request: Any, context: Any) -> Any:
        record(op="invoke", type=request.tok, name="", inputs=json_format.MessageToDict(request.args))
        response = provider_pb2.InvokeResponse()
        json_format.ParseDict(_ANSWERS[request.tok], getattr(response, "return"))
        return response

    def Cancel(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Provider(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    signal.signal(signal.SIGINT, lambda *_: server.stop(0))
    server.wait_for_termination()


if __name__ == "__main__":
    sys.exit(main())
