"""Pulumi's SDKs of Kubernetes and Google Cloud, loaded as far as an evaluation needs them: seconds become tenths.

A package of a service imports every resource it has and the classes of all their inputs and outputs. Programs use a handful,
and those classes only translate names and check types. So a resource's module is loaded when its class is asked for, the
classes of inputs and outputs are plain mappings, and Google's names are translated by `camel`. What cannot be done this way
fails, and is evaluated again with the SDKs as they are.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pulumi import _types

_LISTED = re.compile(r"'(\w+)'")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SERVICE = re.compile(r"pulumi_gcp\.[a-z0-9]+|pulumi_kubernetes(\.[a-z0-9]+)+\.v[0-9][a-z0-9]*")
_SHAPES = re.compile(r"pulumi_(gcp|kubernetes)(\.\w+)+\.(_inputs|outputs)")
# The class of explicit providers takes as long to load as all else of Google's that a program needs.
_PROVIDER = "pulumi_gcp.provider"
_NOT_SERVICES = ("pulumi_gcp._utilities", "pulumi_gcp.config")
# Their keys are the user's own.
_MAPS = ("labels", "resource_labels", "metadata", "tags", "annotations", "node_selector", "user_labels")


class _Light(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname == _PROVIDER:
            return importlib.machinery.ModuleSpec(fullname, self)
        shapes = _SHAPES.fullmatch(fullname) is not None
        if not shapes and (_SERVICE.fullmatch(fullname) is None or fullname in _NOT_SERVICES):
            return None
        real = importlib.machinery.PathFinder.find_spec(fullname, path)
        if real is None or (not shapes and real.submodule_search_locations is None):
            return real
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=real.origin, is_package=not shapes)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec

    def exec_module(self, module: Any) -> None:
        if module.__spec__.submodule_search_locations is not None:
            module.__getattr__ = _members(module.__name__)
            return
        module.__all__ = []
        if module.__name__ == _PROVIDER:
            return
        with Path(module.__spec__.origin).open(encoding="utf-8") as text:
            listing = False
            for line in text:
                listing = listing or line.startswith("__all__")
                if listing:
                    module.__all__ += _LISTED.findall(line)
                    if line.startswith("]"):
                        break
        for name in module.__all__:
            setattr(module, name, dict)


def _members(package: str) -> Callable[[str], Any]:
    def member(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = _WORDS.sub("_", name).lower()
        for module in (name, own, own.removesuffix("_output"), own.removesuffix("_args"), "_inputs", "outputs"):
            try:
                found = import_module(f"{package}.{module}")
            except ModuleNotFoundError:
                continue
            if hasattr(found, name):
                # Importing has put the module of that name here, if there is one.
                setattr(sys.modules[package], name, getattr(found, name))
                return getattr(found, name)
            if module == name:
                return found
        raise AttributeError(f"{package} has no {name}")

    return member


def install() -> None:
    """From here on in this process; before any of the SDKs' services is imported. YAML is read by libyaml where that is there."""
    sys.meta_path.insert(0, _Light())
    # The SDK reads the whole stack of every resource's constructor, for error messages of an engine that is not there.
    sys.tracebacklimit = 1
    # Asked for each property of each resource, and always the same for the same type.
    setattr(_types, "unwrap_type", functools.cache(_types.unwrap_type))  # noqa: B010 - typed as a function, not as a name
    fast = getattr(yaml, "CSafeLoader", None)
    if fast is not None:
        setattr(yaml, "SafeLoader", fast)  # noqa: B010 - typed as a class, not as a name
        setattr(yaml, "parse", functools.partial(yaml.parse, Loader=fast))  # noqa: B010


def camel(value: Any, *, free: bool = False) -> Any:
    """Keys of nested mappings in Google's names, `machine_type` as `machineType`; but for maps whose keys are the user's."""
    if isinstance(value, dict):
        return {
            key if free else _camel_key(key): camel(entry, free=not free and key in _MAPS)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [camel(entry, free=free) for entry in value]
    return value


def _camel_key(key: str) -> str:
    head, *others = key.split("_")
    return head + "".join(part.capitalize() for part in others)
