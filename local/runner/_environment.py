"""A container's environment: what the pod says, what Services and the node add, `$(VAR)` put in."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from decimal import ROUND_CEILING, Decimal

from ._api import Object

# A name -> keys and values of that ConfigMap or Secret; None where it does not exist.
Lookup = Callable[[str], Awaitable[dict[str, str] | None]]
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_BINARY = {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}
_SUFFIXES = (
    _BINARY
    | {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)}
    | {letter: Decimal(1000) ** -power for power, letter in enumerate("mun", 1)}
)


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
    pod: Object,
    container: Object,
    *,
    ip: str,
    node_ip: str,
    config: Lookup,
    secret: Lookup,
    base: Mapping[str, str],
    allocatable: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of one container, in Kubernetes' order of precedence. Raises MissingReference."""
    env = {name: expand(value, base) for name, value in base.items()}
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
        if "resourceFieldRef" in entry["valueFrom"]:
            env[entry["name"]] = resource(container, entry["valueFrom"]["resourceFieldRef"], allocatable)
            continue
        value = await _value_from(entry["valueFrom"], pod, ip, node_ip, config, secret)
        if value is not None:
            env[entry["name"]] = value
    return env


async def _all(lookup: Lookup, reference: Object, kind: str) -> dict[str, str]:
    found = await lookup(reference["name"])
    if found is None and not reference.get("optional"):
        raise MissingReference(f'{kind.removesuffix("Ref").lower()} "{reference["name"]}" not found')
    return found or {}


def _missing(kind: str, reference: Object, whole: bool) -> str:
    if whole:
        return f'{kind} "{reference["name"]}" not found'
    return f"couldn't find key {reference['key']} in {kind} {reference['name']}"


async def _value_from(source: Object, pod: Object, ip: str, node_ip: str, config: Lookup, secret: Lookup) -> str | None:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"], ip=ip, node_ip=node_ip)
    for key, lookup in (("configMapKeyRef", config), ("secretKeyRef", secret)):
        if key in source:
            reference = source[key]
            found = await lookup(reference["name"])
            value = (found or {}).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise MissingReference(_missing(key.removesuffix("KeyRef").lower(), reference, found is None))
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
        # JSON's quoting, as the kubelet's: a value with a line break stays one line.
        return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(entries.items()))
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


def resource(container: Object, reference: Object, allocatable: Mapping[str, str] | None = None) -> str:
    """`limits.cpu` and the like, divided by the divisor and rounded up. A limit that is not set is the node's all, a request
    that is not set is the limit or 0."""
    section, _, name = str(reference["resource"]).partition(".")
    set_to = {part: (container.get("resources", {}).get(part) or {}).get(name) for part in ("limits", "requests")}
    if section == "limits":
        given = set_to["limits"] or (allocatable or {}).get(name, "0")
    else:
        given = set_to["requests"] or set_to["limits"] or "0"
    divisor = quantity(str(reference.get("divisor") or "1")) or Decimal(1)
    return str((quantity(str(given)) / divisor).to_integral_value(ROUND_CEILING))


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity such as 500m or 2Gi."""
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * factor
    return Decimal(text)


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
        for number, port in enumerate(ports):
            if port.get("name"):
                env[f"{name}_SERVICE_PORT_{str(port['name']).upper().replace('-', '_')}"] = str(port["port"])
            protocol = str(port.get("protocol", "TCP"))
            url, stem = f"{protocol.lower()}://{ip}:{port['port']}", f"{name}_PORT_{port['port']}_{protocol}"
            if number == 0:
                env[f"{name}_PORT"] = url
            env |= {
                stem: url,
                f"{stem}_PROTO": protocol.lower(),
                f"{stem}_PORT": str(port["port"]),
                f"{stem}_ADDR": str(ip),
            }
    return env
