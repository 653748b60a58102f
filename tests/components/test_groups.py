"""Replicas that span nodes, for real: the LeaderWorkerSet controller, the coscheduling scheduler, the chart, the pod runner.

Both programs are optional: `tollgate tools build --with lws --with coscheduling`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import planner
import stacks
import values
from local import tools
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Path(__file__).resolve().parents[2]
Kubectl = Callable[..., str]


def needed(name: str) -> Path:
    try:
        return tools.path(name)
    except stacks.TollgateError:
        pytest.skip(f"{name} has not been built: tollgate tools build --with {name}")


def certificate(folder: Path, address: str) -> str:
    """A key and a certificate of that address, signed by itself; returns it as a webhook's `caBundle`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lws-webhooks")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    folder.mkdir()
    (folder / "tls.crt").write_bytes(pem)
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return base64.b64encode(pem).decode()


def webhooks(address: str, port: int, bundle: str) -> list[dict[str, Any]]:
    """LWS' own, called by address: the embedded API server knows no Service names. Of pods, only its own are its business."""
    text = "\n---\n".join(path.read_text() for path in sorted(tools.data("lws-webhooks").glob("*.yaml")))
    found = []
    for document in yaml.safe_load_all(text):
        if not document or "webhooks" not in document:
            continue
        document["metadata"] = {"name": f"lws-{document['kind'].lower()}"}
        for hook in document["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": f"https://{address}:{port}{path}", "caBundle": bundle}
            if "pods" in hook["rules"][0]["resources"]:
                hook["objectSelector"] = {
                    "matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]
                }
        found.append(document)
    return found


@pytest.fixture(scope="module")
def gang(cluster: Any, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """The cluster with both programs running in it."""
    programs = {"lws": needed("lws"), "coscheduling": needed("coscheduling")}
    folder = tmp_path_factory.mktemp("gang")
    kubeconfig = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    address = kubeconfig["clusters"][0]["cluster"]["server"].removeprefix("https://").partition(":")[0]
    port = free_port(address)
    bundle = certificate(folder / "certificates", address)
    for name in ("lws-crds", "coscheduling-crds"):
        kubectl("apply", "--server-side", "-f", str(tools.data(name)))
    (folder / "lws.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "config.lws.x-k8s.io/v1alpha1",
                "kind": "Configuration",
                "leaderElection": {"leaderElect": False},
                "internalCertManagement": {"enable": False},
                "webhook": {"host": address, "port": port, "certDir": str(folder / "certificates")},
                "metrics": {"bindAddress": "0"},
                "health": {"healthProbeBindAddress": f"{address}:{free_port(address)}"},
            }
        )
    )
    profile = {
        "schedulerName": stacks.Group().scheduler,
        "plugins": {
            "multiPoint": {"enabled": [{"name": "Coscheduling"}]},
            "queueSort": {"enabled": [{"name": "Coscheduling"}], "disabled": [{"name": "*"}]},
        },
    }
    (folder / "scheduler.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kubescheduler.config.k8s.io/v1",
                "kind": "KubeSchedulerConfiguration",
                "leaderElection": {"leaderElect": False},
                "clientConnection": {"kubeconfig": str(cluster.kubeconfig)},
                "profiles": [profile],
            }
        )
    )
    commands = {
        "lws": [f"--config={folder}/lws.yaml"],
        "coscheduling": [
            f"--config={folder}/scheduler.yaml",
            f"--bind-address={address}",
            f"--secure-port={free_port(address)}",
            "--authentication-skip-lookup",
            f"--cert-dir={folder}/scheduler",
        ],
    }
    running = []
    try:
        for name, arguments in commands.items():
            log = (folder / f"{name}.log").open("wb")
            env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
            running.append(
                subprocess.Popen([str(programs[name]), *arguments], env=env, stdout=log, stderr=log, cwd=folder)
            )
        kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump_all(webhooks(address, port, bundle)))
        until(lambda: b"Serving webhook server" in (folder / "lws.log").read_bytes(), folder, running)
        yield kubectl
    finally:
        for kind in ("mutating", "validating"):
            kubectl("delete", f"{kind}webhookconfiguration", f"lws-{kind}webhookconfiguration", check=False)
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def until(true: Callable[[], Any], folder: Path | None = None, running: list[Any] | None = None) -> Any:
    """What `true` gives as soon as it is something; within some minutes."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        for process in running or []:
            assert process.poll() is None, "\n".join(
                path.read_text()[-2000:] for path in sorted((folder or Path()).glob("*.log"))
            )
        time.sleep(0.3)
    logs = [path.read_text()[-2000:] for path in sorted(folder.glob("*.log"))] if folder else []
    raise AssertionError("not within three minutes\n" + "\n".join(logs))


def node(name: str) -> dict[str, Any]:
    """A machine of eight A100, as `GpuPool` makes it on the embedded cluster."""
    labels = {
        "cloud.google.com/gke-accelerator": "nvidia-a100-80gb",
        "tollgate.dev/pool": "grok-1",
        "tollgate.dev/runner": "process",
        "kubernetes.io/hostname": name,
    }
    capacity = {"cpu": "96", "memory": "1360Gi", "pods": "110", "nvidia.com/gpu": "8"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {"tollgate.dev/capacity": json.dumps(capacity, sort_keys=True)},
        },
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
    }


def manifests(folder: Path) -> str:
    """The Grok-1-size release as the chart renders it: one replica over two nodes, all or nothing."""
    stack = stacks.load_stack("grok-1", HERE)
    serving = stacks.Serving.model_validate({"group": {"gang": "coscheduling"}})
    stack = stack.model_copy(update={"serving": serving})
    given = values.render(stack, planner.plan(stack))
    given["podMonitor"] = False
    file = folder / "values.json"
    file.write_text(json.dumps(given))
    command = [str(tools.path("helm")), "template", "engine", str(values.chart_path("engine")), "-f", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


def pods(kubectl: Kubectl, namespace: str) -> list[dict[str, Any]]:
    return list(json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"])


def test_a_group_starts_whole_or_not_at_all_and_is_restarted_whole(
    gang: Kubectl, fresh_namespace: str, tmp_path: Path
) -> None:
    kubectl, here = gang, fresh_namespace
    kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump(node("grok-a")))
    try:
        until(
            lambda: (
                "True"
                in kubectl("get", "node", "grok-a", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
            )
        )
        kubectl("apply", "--server-side", "-n", here, "-f", "-", given=manifests(tmp_path))

        # Room for half of it: both pods exist, the first would fit, and neither is bound.
        until(lambda: len(pods(kubectl, here)) == 2)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert [pod["spec"].get("nodeName") for pod in pods(kubectl, here)] == [None, None]
            time.sleep(0.5)
        waiting = pods(kubectl, here)
        assert {pod["spec"]["schedulerName"] for pod in waiting} == {stacks.Group().scheduler}
        assert {pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] for pod in waiting} == {"engine-0"}

        # Room for all of it: both start, each on a machine of its own, and know each other.
        kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump(node("grok-b")))

        def started() -> list[dict[str, Any]]:
            found = pods(kubectl, here)
            running = [pod for pod in found if pod["status"].get("phase") == "Running"]
            return running if len(running) == 2 else []

        first = until(started)
        assert {pod["spec"]["nodeName"] for pod in first} == {"grok-a", "grok-b"}
        for pod in first:
            environment = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
            assert environment["LWS_GROUP_SIZE"]["value"] == "2"
            assert environment["LWS_LEADER_ADDRESS"]["value"].startswith("engine-0-0.engine-0")

        # One is lost: the other goes with it, and two new ones come.
        lost = next(
            pod for pod in first if pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] == "1"
        )
        kubectl("delete", "pod", "-n", here, lost["metadata"]["name"], "--grace-period=1", "--wait=false")
        before = {pod["metadata"]["uid"] for pod in first}
        again = until(lambda: [pod for pod in started() if pod["metadata"]["uid"] not in before][1:] and started())
        assert before.isdisjoint(pod["metadata"]["uid"] for pod in again)
    finally:
        kubectl("delete", "leaderworkerset", "--all", "-n", here, check=False)
        kubectl("delete", "node", "grok-a", "grok-b", "--ignore-not-found")
