"""Where the API server is and how to prove who asks, from a kubeconfig."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._errors import ProviderError, Unreachable


@dataclass(frozen=True, kw_only=True)
class Target:
    """One API server, its TLS context, the headers that authenticate, and the default namespace."""

    server: str
    host: str
    port: int
    prefix: str
    tls: ssl.SSLContext | None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    namespace: str = "default"
    context: str = ""
    text: str = field(default="", repr=False)
    """The kubeconfig itself, to hand on to Helm."""


def read(setting: str | None) -> tuple[str, str]:
    """The kubeconfig's text, and where it came from. `setting` is its contents or a path; None: $KUBECONFIG, ~/.kube/config."""
    if setting and ("\n" in setting or setting.lstrip().startswith("{")):
        return setting, "the provider's kubeconfig"
    named = setting or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = Path(named).expanduser() if named else Path.home() / ".kube" / "config"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        # A preview goes on without: the cluster may be made later.
        raise Unreachable(
            f"no kubeconfig: {path}: {error.strerror}; set KUBECONFIG or `kubernetes:kubeconfig`, or start a cluster first"
        ) from None


def load(setting: str | None, *, context: str | None = None, namespace: str | None = None) -> Target:
    """The target that a kubeconfig names. Raises ProviderError where it is missing or cannot be used."""
    text, origin = read(setting)
    document = _parse(text, origin)
    wanted = context or document.get("current-context") or ""
    chosen = _named(document, "contexts", wanted).get("context")
    if not chosen:
        names = ", ".join(str(item.get("name")) for item in document.get("contexts") or []) or "none"
        raise ProviderError(f"{origin}: there is no context {wanted!r} (there are: {names})")
    cluster = _named(document, "clusters", str(chosen.get("cluster"))).get("cluster") or {}
    user = _named(document, "users", str(chosen.get("user"))).get("user") or {}
    server = str(cluster.get("server") or "")
    parts = urlsplit(server)
    if not parts.hostname:
        raise ProviderError(f"{origin}: context {wanted!r} names no server")
    base = Path(origin).parent
    credentials = _exec(user["exec"], origin) if user.get("exec") else {}
    return Target(
        server=server,
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
        prefix=parts.path.rstrip("/"),
        tls=_tls(cluster, {**user, **credentials}, base) if parts.scheme == "https" else None,
        headers=_headers({**user, **credentials}, base),
        namespace=namespace or str(chosen.get("namespace") or "default"),
        context=wanted,
        text=text,
    )


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        import yaml  # only where the kubeconfig is not JSON: start-up time counts

        try:
            document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError:
            raise ProviderError(f"{origin} is not a kubeconfig: neither JSON nor YAML") from None
    if not isinstance(document, dict):
        raise ProviderError(f"{origin} is not a kubeconfig: it holds no mapping")
    return document


def _named(document: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    for item in document.get(section) or []:
        if isinstance(item, dict) and item.get("name") == name:
            return item
    return {}


def _bytes(source: dict[str, Any], key: str, base: Path) -> bytes | None:
    if source.get(f"{key}-data"):
        return base64.b64decode(source[f"{key}-data"])
    if source.get(key):
        return (base / str(source[key])).expanduser().read_bytes()
    return None


def _tls(cluster: dict[str, Any], user: dict[str, Any], base: Path) -> ssl.SSLContext:
    authority = _bytes(cluster, "certificate-authority", base)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _bytes(user, "client-certificate", base), _bytes(user, "client-key", base)
    if certificate and key:
        # The ssl module reads key pairs from files only: one private file, gone before this returns.
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def _headers(user: dict[str, Any], base: Path) -> dict[str, str]:
    token = user.get("token")
    if not token and user.get("tokenFile"):
        token = (base / str(user["tokenFile"])).read_text(encoding="utf-8").strip()
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user.get("username"):
        pair = base64.b64encode(f"{user['username']}:{user.get('password', '')}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


def _exec(plugin: dict[str, Any], origin: str) -> dict[str, Any]:
    """Credentials from a client-go credential plugin (client.authentication.k8s.io ExecCredential)."""
    command = [str(plugin.get("command")), *(str(item) for item in plugin.get("args") or [])]
    info = {"apiVersion": plugin.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": False}}
    environment = {**os.environ, "KUBERNETES_EXEC_INFO": json.dumps(info)}
    environment |= {str(item["name"]): str(item["value"]) for item in plugin.get("env") or []}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
        status = json.loads(done.stdout).get("status") or {}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        hint = plugin.get("installHint") or ""
        raise ProviderError(
            f"{origin}: the credential plugin {command[0]!r} failed ({type(error).__name__}). {hint}"
        ) from None
    found: dict[str, Any] = {}
    if status.get("token"):
        found["token"] = status["token"]
    for ours, theirs in (("client-certificate-data", "clientCertificateData"), ("client-key-data", "clientKeyData")):
        if status.get(theirs):
            found[ours] = base64.b64encode(status[theirs].encode()).decode()
    return found
