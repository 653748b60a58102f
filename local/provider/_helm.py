"""The Helm command line: one run at a time, nothing secret in its arguments, its errors without noise.

Values and credentials go through files in a private folder (0700) that is gone when the run ends. What a release is, is read
from Helm's own storage (a Secret per revision, gzipped JSON: `owner=helm`), which costs one request instead of a process.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._client import Client, segment
from ._errors import ApiError, Cancelled, ProviderError
from ._session import Session
from ._values import Asset

# Kubernetes takes Secrets of at most 1 MiB; what is in one is many times as large, but not without end.
_MOST_BYTES = 64 << 20
_STOP_SECONDS = 20.0  # Helm rolls an atomic release back when it is asked to stop


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One revision of a release in Helm's storage."""

    number: int
    status: str
    mark: str
    document: dict[str, Any] = field(repr=False)

    @property
    def pending(self) -> bool:
        return self.status.startswith("pending")


def revisions(client: Client, namespace: str, name: str, mark_label: str) -> list[Revision]:
    """All stored revisions, oldest first."""
    try:
        found = client.request(
            "GET",
            f"/api/v1/namespaces/{segment(namespace)}/secrets",
            query={"labelSelector": f"owner=helm,name={name}"},
            action=f"look up release {namespace}/{name}",
        )
    except ApiError as error:
        if error.status == 404:
            return []
        raise
    result = []
    for item in found.get("items") or []:
        labels = item["metadata"].get("labels") or {}
        try:
            document = _opened(item["data"]["release"])
        except (ValueError, TypeError, LookupError, RecursionError, zlib.error) as error:
            secret = str((item.get("metadata") or {}).get("name"))
            raise ProviderError(
                f"Secret {namespace}/{secret} is labelled a Helm release and cannot be read as one ({error})\n"
                f"  fix: kubectl delete secret -n {namespace} {secret}, if it is none"
            ) from None
        result.append(
            Revision(
                number=int(labels.get("version") or document.get("version") or 0),
                status=str(labels.get("status") or (document.get("info") or {}).get("status")),
                mark=str(labels.get(mark_label) or ""),
                document=document,
            )
        )
    return sorted(result, key=lambda revision: revision.number)


def _opened(packed: str) -> dict[str, Any]:
    """What Helm stores. Raises ValueError and zlib.error for anything else, also for a little that becomes all of the memory."""
    opened = zlib.decompressobj(wbits=31)
    text = opened.decompress(base64.b64decode(base64.b64decode(packed)), _MOST_BYTES)
    if not opened.eof:
        raise ValueError(f"cut short, or more than {_MOST_BYTES} bytes")
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("no object")
    return document


@functools.cache
def _version(executable: str) -> int:
    done = subprocess.run(
        [executable, "version", "--template", "{{.Version}}"], capture_output=True, text=True, check=False
    )
    found = re.match(r"v(\d+)", done.stdout.strip())
    return int(found.group(1)) if found else 3


class Helm:
    """Runs `helm` for one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._executable = shutil.which("helm")

    @property
    def major(self) -> int:
        """The major version on PATH: flags differ between 3 and 4."""
        return _version(self._program())

    def _program(self) -> str:
        if self._executable is None:
            raise ProviderError("helm is not on PATH; install Helm 3 or 4, or run inside `tollgate local shell`")
        return self._executable

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private folder for the files of one operation."""
        folder = Path(tempfile.mkdtemp(prefix="tollgate-helm-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(
        self,
        arguments: list[str],
        folder: Path,
        *,
        stdin: str | None = None,
        tick: Callable[[], None] | None = None,
        seconds: float = 600.0,
        offline: bool = False,
    ) -> str:
        """Run `helm` and return its output; `tick` is called every second. Raises ProviderError (Helm's words) and Cancelled."""
        environment = {**os.environ, "HELM_REGISTRY_CONFIG": str(folder / "registry.json")}
        for name in ("HELM_REPOSITORY_CONFIG", "HELM_REPOSITORY_CACHE"):
            if (folder / "repositories.yaml").exists():
                environment[name] = str(folder / ("repositories.yaml" if name.endswith("CONFIG") else "cache"))
        if not (folder / "registry.json").exists():
            del environment["HELM_REGISTRY_CONFIG"]
        if not offline:
            environment |= self._cluster(folder)
        with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
            process = subprocess.Popen(
                [self._program(), *arguments],
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this plugin by Cancel, and Helm through it
            )
            if stdin is not None and process.stdin is not None:
                process.stdin.write(stdin)
                process.stdin.close()
            stopped = _supervise(process, self._session.cancelled, tick, seconds)
            out.seek(0)
            err.seek(0)
            output, problem = out.read(), err.read()
        if stopped == "cancelled":
            raise Cancelled("stopped on request while Helm was at work")
        if stopped:
            raise ProviderError(f"helm {arguments[0]} did not end within {seconds:.0f} s and was stopped")
        if process.returncode != 0:
            raise ProviderError(f"helm {arguments[0]}: {_message(problem)}")
        return output

    def _cluster(self, folder: Path) -> dict[str, str]:
        settings, found = self._session.settings, {}
        setting = settings.kubeconfig
        if setting and ("\n" in setting or setting.lstrip().startswith("{")):
            path = folder / "kubeconfig"
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(setting)
            found["KUBECONFIG"] = str(path)
        elif setting:
            found["KUBECONFIG"] = str(Path(setting).expanduser().resolve())
        if settings.context:
            found["HELM_KUBECONTEXT"] = settings.context
        return found

    def values(self, folder: Path, files: list[Any], values: dict[str, Any]) -> list[str]:
        """`-f` arguments for value files (assets or paths) and then the inline values, which win."""
        arguments = []
        for index, item in enumerate(files):
            text = item.text if isinstance(item, Asset) else None
            source = item.path if isinstance(item, Asset) else item
            if text is None:
                try:
                    text = Path(str(source)).expanduser().read_text(encoding="utf-8")
                except OSError as error:
                    raise ProviderError(f"valueYamlFiles: {source}: {error.strerror}") from None
            arguments += ["-f", str(_private(folder / f"values-{index}.yaml", text))]
        if values:
            arguments += ["-f", str(_private(folder / "values.yaml", json.dumps(values)))]
        return arguments

    def chart(self, folder: Path, chart: str, options: dict[str, Any]) -> list[str]:
        """The chart argument and the flags of its repository, with credentials registered in the private folder."""
        flags = []
        for key, flag in (("caFile", "--ca-file"), ("certFile", "--cert-file"), ("keyFile", "--key-file")):
            if options.get(key):
                flags += [flag, str(options[key])]
        repo, user, password = options.get("repo"), options.get("username"), options.get("password")
        if not password:
            return [chart, *(["--repo", str(repo)] if repo else []), *flags]
        if chart.startswith("oci://"):
            (folder / "registry.json").write_text("{}")
            host = urlsplit(chart).netloc
            self.run(
                ["registry", "login", host, "-u", str(user or ""), "--password-stdin"],
                folder,
                stdin=str(password),
                offline=True,
            )
            return [chart, *flags]
        (folder / "repositories.yaml").write_text("apiVersion: v1\nrepositories: []\n")
        login = ["repo", "add", "chart", str(repo), "--username", str(user or ""), "--password-stdin", *flags]
        self.run(login, folder, stdin=str(password), offline=True)
        return [f"chart/{chart}"]


def _private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def _supervise(
    process: subprocess.Popen[str], cancelled: threading.Event, tick: Callable[[], None] | None, seconds: float
) -> str:
    """Wait for the process; "" when it ended, else why it was stopped."""
    deadline, next_tick, why = time.monotonic() + seconds, time.monotonic() + 1.0, ""
    while process.poll() is None:
        now = time.monotonic()
        if not why and (cancelled.is_set() or now > deadline):
            why = "cancelled" if cancelled.is_set() else "time-out"
            deadline = now + _STOP_SECONDS
            process.terminate()
        elif why and now > deadline:
            process.kill()
        if tick and not why and now >= next_tick:
            next_tick = now + 1.0
            tick()
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    return why


def _message(problem: str) -> str:
    """Helm's complaint without its log lines and without the warnings before it."""
    lines = [
        line for line in problem.strip().splitlines() if not re.match(r"^[WIE]\d{4} |^(level|time)=|^WARNING:", line)
    ]
    start = next((index for index, line in enumerate(lines) if line.startswith("Error:")), 0)
    text = "\n".join(lines[start:]).removeprefix("Error:").strip()
    return text[:3000] or "it failed and did not say why"


def checksum(chart: str) -> str | None:
    """SHA-256 over a local chart's files (names and contents); None for a chart that is not a path."""
    path = Path(chart).expanduser()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not (path / "Chart.yaml").is_file():
        return None
    total = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        content = file.read_bytes()
        total.update(f"{file.relative_to(path).as_posix()}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
