"""A container's environment: what the pod says, what Services and the node add, `$(VAR)` put in."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ._api import Object

Lookup = Callable[[str, str, bool], Awaitable[dict[str, str] | None]]
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}


class MissingReference(Exception):
    """A ConfigMap, Secret or key that the pod needs is not there (yet)."""


def expand(text: str, known: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, `$$` a dollar sign; an unknown name stays as it is written, as in Kubernetes."""

    def put(match: re.Match[str]) -> str:
        if match.group(0) == "$$":
            return "$"
        return known.get(match.group(1), match.group(0))

    return _REFERENCE.sub(put, text)


async def container_environment(
    pod: Object, container: Object, *, ip: str, node_ip: str, config: Lookup, secret: Lookup, base: Mapping[str, str]
) -> dict[str, str]:
    """The environment of one container, in Kubernetes' order of precedence. Raises MissingReference."""
    env = dict(base)
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        for key, lookup in (("configMapRef", config), ("secretRef", secret)):
            if key in source:
                found = await _all(lookup, source[key], key)
                env.update({prefix + name: value for name, value in found.items()})
    for entry in container.get("env") or []:
        if "valueFrom" not in entry:
            env[entry["name"]] = expand(str(entry.get("value", "")), env)
            continue
        value = await _value_from(entry["valueFrom"], pod, container, ip, node_ip, config, secret)
        if value is not None:
            env[entry["name"]] = value
    return env


async def _all(lookup: Lookup, reference: Object, kind: str) -> dict[str, str]:
    found = await lookup(reference["name"], "", bool(reference.get("optional")))
    if found is None and not reference.get("optional"):
        raise MissingReference(f'{kind.removesuffix("Ref").lower()} "{reference["name"]}" not found')
    return found or {}


async def _value_from(
    source: Object, pod: Object, container: Object, ip: str, node_ip: str, config: Lookup, secret: Lookup
) -> str | None:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"], ip=ip, node_ip=node_ip)
    if "resourceFieldRef" in source:
        return resource(container, source["resourceFieldRef"])
    for key, lookup in (("configMapKeyRef", config), ("secretKeyRef", secret)):
        if key in source:
            reference = source[key]
            found = await lookup(reference["name"], reference["key"], bool(reference.get("optional")))
            value = (found or {}).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise MissingReference(f'key "{reference["key"]}" of "{reference["name"]}" not found')
            return value
    return None


def field(pod: Object, path: str, *, ip: str, node_ip: str) -> str:
    """A downward API field; an unknown path is empty."""
    meta = pod["metadata"]
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if keyed:
        return str((meta.get(keyed.group(1)) or {}).get(keyed.group(2), ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = meta.get(path.removeprefix("metadata.")) or {}
        return "".join(f'{key}="{value}"\n' for key, value in sorted(entries.items()))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": ip,
        "status.podIPs": ip,
        "status.hostIP": node_ip,
        "status.hostIPs": node_ip,
    }
    return str(known.get(path, ""))


def resource(container: Object, reference: Object) -> str:
    """`limits.cpu` and the like, divided by the divisor and rounded up; 0 where the container sets none."""
    section, _, name = str(reference["resource"]).partition(".")
    given = (container.get("resources", {}).get(section) or {}).get(name, "0")
    divisor = _quantity(str(reference.get("divisor") or "1")) or 1
    return str(-int(-(_quantity(str(given)) / divisor) // 1))


def _quantity(text: str) -> float:
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def service_variables(services: list[Object], namespace: str, *, links: bool) -> dict[str, str]:
    """The variables that announce Services: all of the pod's namespace with `links`, and always the API server's."""
    env: dict[str, str] = {}
    for service in services:
        meta, spec = service["metadata"], service["spec"]
        ip, ports = spec.get("clusterIP"), spec.get("ports") or []
        is_api = (meta["namespace"], meta["name"]) == ("default", "kubernetes")
        if not ip or ip == "None" or not ports or not (is_api or (links and meta["namespace"] == namespace)):
            continue
        name = str(meta["name"]).upper().replace("-", "_")
        env[f"{name}_SERVICE_HOST"] = str(ip)
        env[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                env[f"{name}_SERVICE_PORT_{str(port['name']).upper().replace('-', '_')}"] = str(port["port"])
    return env


def plain(value: Any) -> str:
    """A label's or limit's value as text."""
    return "" if value is None else str(value)
