"""Start the Job, follow the log of its first pod, take everything away again."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import stacks

from .. import load as generator
from ..job import PROGRESS, RESULT, JobConfig, Pieces, progress_of
from ..results import Result
from ._job import PORT, inside, job, labels, secret, service
from ._kubectl import Kubectl

_START_SECONDS = 300.0


def run(
    config: JobConfig,
    kubectl: Kubectl,
    *,
    progress: Callable[[generator.Progress], None],
    say: Callable[[str], None],
    longest: float,
) -> Result:
    """Measure from `config.pods` pods in kubectl's namespace and give the result; blocks until it is done.

    `longest`: seconds after which Kubernetes ends the Job. Ctrl-C lets the pods end early and report what they have; the
    Job, its Service and its Secret are deleted however this ends. Raises TollgateError when the pods cannot be started,
    when one is lost, or when the first one says why it could not measure.
    """
    name = f"load-{secrets.token_hex(4)}"
    with _removed(kubectl, name), _interrupted(kubectl, name, say):
        kubectl.create([service(name)])
        address = str(kubectl.get("service", name)["spec"]["clusterIP"])
        config, files = inside(
            config.model_copy(update={"coordinator": f"{address}:{PORT}", "token": secrets.token_hex(16)})
        )
        objects = [secret(name, config, files), job(name, config.pods, longest, cpu=config.workers)]
        kubectl.create(objects)
        say(f"Job {kubectl.namespace}/{name}: {config.pods} pods")
        pod = _first_pod(kubectl, name)
        return _follow(kubectl, pod, progress, say)


def _first_pod(kubectl: Kubectl, name: str) -> str:
    """The running (or ended) pod 0. Raises TollgateError with what keeps it from running."""
    deadline = time.monotonic() + _START_SECONDS
    said = "no pod yet"
    while time.monotonic() < deadline:
        found = kubectl.get("pods", "-l", f"tollgate.dev/load={name}")["items"]
        for pod in found:
            index = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
            phase = pod.get("status", {}).get("phase")
            if index == "0" and phase in ("Running", "Succeeded", "Failed"):
                return str(pod["metadata"]["name"])
            said = _reason(pod) or said
        time.sleep(0.3)
    raise stacks.TollgateError(f"the pods of Job {name} did not start within {_START_SECONDS:.0f} s: {said}")


def _reason(pod: dict[str, Any]) -> str:
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting:
            return f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions") or []:
        if condition.get("status") == "False" and condition.get("message"):
            return str(condition["message"])
    return ""


def _follow(
    kubectl: Kubectl, pod: str, progress: Callable[[generator.Progress], None], say: Callable[[str], None]
) -> Result:
    found, last = Pieces(), ""
    seen: set[str] = set()
    while True:
        process = kubectl.follow(pod)
        assert process.stdout is not None
        try:
            for raw in process.stdout:
                line = raw.rstrip("\n")
                if line.startswith(RESULT):
                    found.take(line)
                    if (result := found.result()) is not None:
                        return result
                elif line.startswith(PROGRESS):
                    with contextlib.suppress(ValueError, TypeError, RecursionError):
                        progress(progress_of(line))
                elif line and line not in seen:
                    # The log is told again from its beginning whenever the connection to it was lost.
                    seen.add(line)
                    last = line
                    say(line)
        finally:
            _ended(process)
        try:
            phase = kubectl.get("pod", pod).get("status", {}).get("phase")
        except stacks.TollgateError:
            phase = "gone"
        if phase not in ("Running", "Pending"):
            break
        time.sleep(0.5)
    raise stacks.TollgateError(f"no result came from pod {pod}: {last or 'its log is empty'}")


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def _removed(kubectl: Kubectl, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        selector = ",".join(f"{key}={value}" for key, value in labels(name).items())
        with contextlib.suppress(stacks.TollgateError):
            kubectl.run("delete", "job,service,secret", "-l", selector, "--ignore-not-found", "--wait=false")


def _interrupted(kubectl: Kubectl, name: str, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """The first Ctrl-C (or SIGTERM) deletes the Job: its first pod then reports what it has. A second one acts as it would."""

    def end() -> None:
        say("ending early; once more ends at once and without a result")
        command = kubectl.command("delete", "job", name, "--wait=false")
        subprocess.Popen(
            command, env=dict(kubectl.environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    return generator.stopped_by_signals(generator.Stopper(), end)
