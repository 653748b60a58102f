"""The embedded cluster under trouble: killed parts, killed supervisor, two at once, ports taken, no privileges."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stacks
from local import cluster as room
from local import tools
from local.cluster._layout import Addresses
from local.cluster.supervisor import check_ports
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HERE = Path(__file__).resolve().parents[2]


def component(found: Any, name: str) -> dict[str, Any]:
    part = json.loads((found.state_dir / "state.json").read_text())["components"][name]
    assert isinstance(part, dict)
    return part


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    monkeypatch.setenv("TOLLGATE_HOME", str(home))
    yield home
    for name in room.list_clusters():
        room.down(name)


def test_a_killed_api_server_is_back_and_knows_everything(cluster: Any, kubectl: Any, fresh_namespace: str) -> None:
    kubectl("create", "configmap", "-n", fresh_namespace, "memory", "--from-literal=a=b")
    before = component(cluster, "kube-apiserver")["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: component(cluster, "kube-apiserver")["pid"] not in (None, before), "a new API server")
    until(lambda: component(cluster, "kube-apiserver")["phase"] == "ready", "the API server answers")
    data = kubectl("get", "configmap", "-n", fresh_namespace, "memory", "-o", "jsonpath={.data.a}")
    assert data == "b"
    until(lambda: room.status(cluster.name).phase == "ready", "the whole cluster")


def test_the_adapter_of_external_metrics_answers_through_the_api(kubectl: Any) -> None:
    path = "/apis/external.metrics.k8s.io/v1beta1"
    assert "external.metrics.k8s.io" in until(lambda: kubectl("get", "--raw", path, check=False), "KEDA's adapter")


def test_a_pod_finds_prometheus_by_the_name_of_its_service(kubectl: Any, fresh_namespace: str) -> None:
    labels = {"kubernetes.io/hostname": "life-node", "tollgate.dev/runner": "process", "life-test": "yes"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "life-node", "labels": labels}}
    kubectl("apply", "-f", "-", given=json.dumps(node))
    script = "import urllib.request as u;print(u.urlopen('http://prometheus.monitoring.svc:9090/api/v1/query?query=up',timeout=60).status)"
    container = {
        "name": "c",
        "image": "busybox",
        "command": ["/bin/sh", "-c", f'exec "$TOLLGATE_PYTHON" -c "{script}"'],
    }
    spec = {"nodeSelector": {"life-test": "yes"}, "restartPolicy": "Never", "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ask"}, "spec": spec}
    kubectl("create", "-n", fresh_namespace, "-f", "-", given=json.dumps(pod))
    kubectl("wait", "-n", fresh_namespace, "--for=jsonpath={.status.phase}=Succeeded", "pod/ask", "--timeout=120s")
    assert kubectl("logs", "-n", fresh_namespace, "ask").strip() == "200"


def test_up_on_a_running_cluster_is_the_same_cluster(cluster: Any) -> None:
    assert room.up(cluster.name) == cluster


def test_a_cluster_that_is_not_up_is_named_with_the_command_that_starts_it(own_home: Path) -> None:
    with pytest.raises(stacks.TollgateError, match="tollgate local up"):
        room.load("nowhere")


def test_two_clusters_side_by_side_and_a_killed_supervisor_leaves_nothing_behind(cluster: Any, own_home: Path) -> None:
    second = room.up("second")
    assert second.slot != cluster.slot
    assert second.api_url != cluster.api_url
    os.kill(second.supervisor_pid, signal.SIGKILL)
    # Its children have asked the kernel to die with it.
    until(lambda: not room.leftovers(second.state_dir), "every process is gone")
    third = room.up("second")
    assert third.supervisor_pid != second.supervisor_pid
    assert room.status("second").phase == "ready"
    assert room.down("second")
    assert room.leftovers(third.state_dir) == []
    assert not third.state_dir.exists()
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    assert Addresses(slot=third.slot).nft_table not in tables
    assert component(cluster, "kube-proxy")["phase"] == "ready"


def test_a_port_in_use_is_named_with_its_holder(cluster: Any) -> None:
    # 127.0.0.x stands for the slot's own address, which exists only while a cluster has it.
    class Here(Addresses):
        @property
        def control_plane(self) -> str:
            return "127.0.0.77"

        @property
        def listeners(self) -> tuple[tuple[str, int, str], ...]:
            return ((self.control_plane, port, "etcd"),)

    with socket.socket() as taken:
        taken.bind(("127.0.0.77", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            stacks.TollgateError, match=rf"etcd cannot listen on 127\.0\.0\.77:{port}.*process {os.getpid()}"
        ):
            check_ports(Here(slot=15))


def test_no_space_is_said_before_anything_starts(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 10 * 2**20})())
    with pytest.raises(stacks.TollgateError, match=r"(?s)no space for a cluster.*10 MiB free.*TOLLGATE_HOME"):
        room.up("full")
    assert not (own_home / "clusters" / "full" / "state.json").exists()


def _linked(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy(source, target)


def _works(command: list[str], env: dict[str, str], folder: Path) -> bool:
    try:
        return subprocess.run(command, env=env, cwd=folder, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_without_privileges_it_runs_whole_in_namespaces_of_its_own() -> None:
    """As another user without any capability: the path that an ordinary user takes."""
    nobody = 65534
    home = Path(tempfile.mkdtemp(prefix="tollgate-rootless-", dir="/tmp"))
    os.chown(home, nobody, nobody)
    dropped = [
        "setpriv",
        f"--reuid={nobody}",
        f"--regid={nobody}",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    env = {**os.environ, "PYTHONPATH": str(HERE), "HOME": str(home), "TOLLGATE_HOME": str(home / "clusters")}
    # The tools as that user's own: the same files by hard links, in folders that belong to them.
    cache = home / "cache"
    shutil.copytree(tools.cache_dir() / "tools", cache / "tools", copy_function=_linked)
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        os.chown(folder, nobody, nobody)
    env["TOLLGATE_CACHE"] = str(cache)
    env["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    # Project state (the file backend) belongs to the user as well.
    shutil.copy(HERE / "Pulumi.yaml", home)
    (home / "stacks").mkdir()
    os.chown(home / "stacks", nobody, nobody)
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), sysconfig.get_paths()["purelib"]])
    # A Python in somebody's home folder is closed to other users; the system's may be of the same version.
    ask = "import subprocess, sys, httptools, stacks; subprocess.run([sys.executable, '-c', 'pass'], check=True)"
    usable = [one for one in (sys.executable, "/usr/bin/python3") if _works([*dropped, one, "-c", ask], env, home)]
    if not usable:
        shutil.rmtree(home, ignore_errors=True)
        pytest.skip("no Python that another user may run with this checkout's packages")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*dropped, usable[0], "-m", "tollgate", "local", *arguments]
        return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=300, check=False)

    try:
        up = run("up", "--name", "rootless")
        assert up.returncode == 0, up.stdout + up.stderr
        status = json.loads(run("status", "--name", "rootless", "--json").stdout)
        pid = next(part["pid"] for part in status["components"] if part["name"] == "etcd")
        assert Path(f"/proc/{pid}/ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
        labels = {"tollgate.dev/runner": "process"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": labels}}
        (home / "node.json").write_text(json.dumps(node))
        kubectl = ["shell", "--name", "rootless", "--", "kubectl"]
        created = run(*kubectl, "create", "-f", str(home / "node.json"))
        assert created.returncode == 0, created.stderr
        made = run(*kubectl, "run", "hello", "--image=busybox", "--restart=Never", "--command", "--", "echo", "inside")
        assert made.returncode == 0, made.stderr
        done = run(*kubectl, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/hello", "--timeout=120s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert run(*kubectl, "logs", "hello").stdout.strip() == "inside"
    finally:
        down = run("down", "--name", "rootless")
        left = room.leftovers(home / "clusters" / "clusters" / "rootless")
        shutil.rmtree(home, ignore_errors=True)
    assert down.returncode == 0, down.stderr
    assert left == []
