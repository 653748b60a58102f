"""The gRPC parts of the Pulumi SDK, imported without the SDK.

`import pulumi` costs most of a second (Automation API, OpenTelemetry) and every Pulumi command starts this plugin, so the
packages above the generated modules are stood in for by empty ones that only know where to look.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


def _shallow(name: str, folder: Path) -> None:
    """Put an empty package in place of `name`, so that importing below it does not run its `__init__`."""
    if name in sys.modules:
        return
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, package)


def _prepare() -> None:
    if "pulumi" in sys.modules:
        return
    spec = importlib.util.find_spec("pulumi")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the Python package `pulumi` is missing here; set TOLLGATE_PYTHON to the Python that has it")
    root = Path(spec.submodule_search_locations[0])
    _shallow("pulumi", root)
    _shallow("pulumi.runtime", root / "runtime")
    _shallow("pulumi.runtime.proto", root / "runtime" / "proto")
    # grpc imports its asyncio half at the end of its own start; nothing here uses it and it costs a tenth of a second.
    sys.modules.setdefault("grpc.aio", types.ModuleType("grpc.aio"))


_prepare()

grpc: Any = importlib.import_module("grpc")
empty_pb2: Any = importlib.import_module("google.protobuf.empty_pb2")
engine_pb2: Any = importlib.import_module("pulumi.runtime.proto.engine_pb2")
engine_pb2_grpc: Any = importlib.import_module("pulumi.runtime.proto.engine_pb2_grpc")
plugin_pb2: Any = importlib.import_module("pulumi.runtime.proto.plugin_pb2")
provider_pb2: Any = importlib.import_module("pulumi.runtime.proto.provider_pb2")
provider_pb2_grpc: Any = importlib.import_module("pulumi.runtime.proto.provider_pb2_grpc")
status_pb2: Any = importlib.import_module("pulumi.runtime.proto.status_pb2")
struct_pb2: Any = importlib.import_module("google.protobuf.struct_pb2")
