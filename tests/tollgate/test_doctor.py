"""Each finding of the doctor against a fake that has the trouble, and against one that has not."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import gate
import planner
import stacks
from local import tools
from tests.attack.conftest import CANARY
from tollgate import doctor
from tollgate.commands.doctor import examine

TODAY = date(2026, 11, 21)


def about(findings: list[doctor.Finding], words: str) -> doctor.Finding:
    found = [one for one in findings if words in one.about]
    assert len(found) == 1, findings
    return found[0]


def looked_at(project: Path, *names: str, today: date = TODAY) -> list[doctor.Finding]:
    return list(doctor.project(project, [stacks.load_stack(name, project) for name in names], (), today))


def test_a_stack_that_keeps_its_promise_is_well(project: Path) -> None:
    found = looked_at(project, "local-dev")
    assert about(found, "stack local-dev").level == "good"
    assert "8 slots, 10 to 10 g2-standard-8" in about(found, "stack local-dev").said
    assert "every signature holds" in about(found, "evidence").said


def test_a_stack_that_cannot_keep_its_promise_is_warned_of_with_what_would_help(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(path.read_text().replace("{min: 10, max: 10}", "{min: 2, max: 2}"))
    found = about(looked_at(project, "local-dev"), "stack local-dev")
    assert found.level == "warning"
    assert found.fix == "tollgate plan local-dev says what would"


def test_every_stack_that_cannot_be_read_is_a_finding_and_stops_none_of_the_others(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "stacks" / "Pulumi.local-vllm.yaml"
    path.write_text(path.read_text().replace("users: 50", "user: 50"))
    monkeypatch.chdir(project)
    found = examine([])
    broken = about(found, "stack local-vllm")
    assert broken.level == "bad"
    assert "tollgate:traffic.user" in broken.said
    assert about(found, "stack local-dev").level == "good"


def test_a_machine_without_a_price_is_bad_and_old_prices_are_a_warning(project: Path) -> None:
    path = project / "stacks" / "Pulumi.dev.yaml"
    text = path.read_text()
    assert [one.level for one in looked_at(project, "dev") if one.about == "prices"] == ["good"]
    old = [one for one in looked_at(project, "dev", today=date(2028, 1, 1)) if one.about == "prices"]
    assert [one.level for one in old] == ["warning"]
    assert old[0].fix == "tollgate prices refresh --region us-central1"
    path.write_text(text.replace("us-central1", "europe-west4"))
    none = [one for one in looked_at(project, "dev") if one.about == "prices"]
    assert [one.level for one in none] == ["bad"]
    assert "europe-west4" in none[0].fix


def test_a_private_key_that_others_can_read_is_bad(project: Path) -> None:
    gate.load_keys(project, create=True)
    assert not [one for one in looked_at(project, "local-prod") if one.level == "bad"]
    (project / ".tollgate" / "keys" / "evidence.key").chmod(0o644)
    found = [one for one in looked_at(project, "local-prod") if one.level == "bad"]
    assert [one.fix for one in found] == ["chmod 600 .tollgate/keys/evidence.key"]


def test_a_gated_stack_without_a_committed_key_is_warned_of(project: Path) -> None:
    assert about(looked_at(project, "local-prod"), "trusted keys").level == "warning"
    assert not [one for one in looked_at(project, "local-dev") if one.about == "trusted keys"]
    gate.load_keys(project, create=True)
    (project / "stacks" / "keys").mkdir()
    (project / ".tollgate" / "keys" / "evidence.pub").rename(project / "stacks" / "keys" / "ci.pub")
    assert about(looked_at(project, "local-prod"), "trusted keys").said == "ci"


def test_broken_evidence_is_bad(project: Path) -> None:
    store = project / ".tollgate" / "evidence"
    store.mkdir(parents=True)
    (store / "000001.json").write_text("{}")
    assert about(looked_at(project, "local-dev"), "evidence file").level == "bad"


def test_a_listener_on_every_address_is_named_with_the_component_that_needs_its_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = SimpleNamespace(status=psutil.CONN_LISTEN, laddr=SimpleNamespace(ip="0.0.0.0", port=2379), pid=None)
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [listener])
    found = [one for one in doctor.machine() if one.about == "ports"]
    assert [one.level for one in found] == ["bad"]
    assert "port 2379 of every address, which etcd needs" in found[0].said
    # One address of the machine's own is nothing to the cluster, which has addresses of its own.
    listener.laddr.ip = "127.0.0.1"
    assert [one.level for one in doctor.machine() if one.about == "ports"] == ["good"]


def test_missing_tools_ask_for_the_disk_that_building_them_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    row = tools.ToolStatus(name="etcd", version="1", origin="missing", path=None, purpose="", optional=False)
    monkeypatch.setattr(tools, "status", lambda: [row])
    usage = psutil.disk_usage("/")._replace(free=5 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    found = list(doctor.machine())
    assert about(found, "tools").fix == "tollgate tools build"
    assert about(found, "disk").level == "bad"
    assert "12 GB are needed" in about(found, "disk").said
    monkeypatch.setattr(tools, "status", list)
    assert about(list(doctor.machine()), "disk").level == "good"


Kubectl = Callable[[str], dict[str, str]]


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    """An environment whose kubectl is a script."""

    def make(script: str) -> dict[str, str]:
        path = tmp_path / "bin" / "kubectl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return {"PATH": f"{path.parent}:/usr/bin:/bin"}

    return make


@pytest.fixture
def existing(project: Path) -> stacks.Stack:
    """An autoscaled stack on somebody's cluster."""
    path = project / "stacks" / "Pulumi.local-vllm.yaml"
    text = path.read_text().replace("tollgate:target: local", "tollgate:target: kubernetes\n  tollgate:cluster: theirs")
    path.write_text(text.replace("{min: 10, max: 10}", "{min: 1, max: 10}"))
    return stacks.load_stack("local-vllm", project)


def test_an_operator_that_a_stack_needs_and_the_cluster_lacks_is_named(
    existing: stacks.Stack, kubectl: Kubectl
) -> None:
    prefix = "customresourcedefinition.apiextensions.k8s.io/"
    half = kubectl(f'test "$2" = theirs && echo {prefix}scaledobjects.keda.sh')
    (found,) = doctor.clusters([existing], half)
    assert (found.level, found.said) == ("bad", "prometheus is not installed: no podmonitors.monitoring.coreos.com")
    whole = kubectl(f"echo {prefix}scaledobjects.keda.sh; echo {prefix}podmonitors.monitoring.coreos.com")
    (found,) = doctor.clusters([existing], whole)
    assert found.level == "good"


def test_a_cluster_that_does_not_answer_is_bad(existing: stacks.Stack, kubectl: Kubectl) -> None:
    (found,) = doctor.clusters([existing], kubectl('echo "error: context \\"theirs\\" does not exist" >&2; exit 1'))
    assert found.level == "bad"
    assert "does not exist" in found.said


class Google:
    """Service Usage and Compute Engine, as far as they are asked; what was asked is kept."""

    def __init__(self) -> None:
        self.enabled = {"compute", "container", "iam", "cloudresourcemanager", "dns", "storage"}
        self.quotas: dict[str, dict[str, float]] = {}
        # Rows of the quota by family, or None: Cloud Quotas is not enabled.
        self.families: list[dict[str, Any]] | None = []
        self.status = 200
        self.asked: list[str] = []
        self.tokens: set[str] = set()

    def answer(self, path: str) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": "Permission denied on resource project acme."}}
        if "batchGet" in path:
            names = [part.partition("=")[2] for part in path.partition("?")[2].split("&")]
            on = {f"{name}.googleapis.com" for name in self.enabled}
            return {
                "services": [{"name": n, "state": "ENABLED" if n.split("/")[-1] in on else "DISABLED"} for n in names]
            }
        if path.endswith("/quotaInfos/GPUS-PER-GPU-FAMILY-per-project-region"):
            return {"quotaId": "GPUS-PER-GPU-FAMILY-per-project-region", "dimensionsInfos": self.families}
        place = path.rpartition("/regions/")[2] if "/regions/" in path else "project"
        rows = self.quotas.get(place, {})
        return {"quotas": [{"metric": name, "limit": limit, "usage": 0} for name, limit in rows.items()]}


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    fake = Google()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.asked.append(self.path)
            fake.tokens.add(self.headers["Authorization"])
            off = fake.families is None and "/quotaInfos/" in self.path
            answer = {"error": {"message": "Cloud Quotas API has not been used"}} if off else fake.answer(self.path)
            body = json.dumps(answer).encode()
            self.send_response(403 if off else fake.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    for api in ("SERVICEUSAGE", "COMPUTE", "CLOUDQUOTAS"):
        monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}", url)
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", CANARY)
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


def cloud(project: Path, *names: str) -> list[doctor.Finding]:
    return list(doctor.cloud([stacks.load_stack(name, project) for name in names]))


def test_quota_is_held_against_what_all_stacks_ask_for_by_region_and_spot(project: Path, google: Google) -> None:
    # prod: 12 nodes over two regions; dev: one spot node, or one on demand.
    google.quotas = {
        "us-central1": {"NVIDIA_L4_GPUS": 7, "PREEMPTIBLE_NVIDIA_L4_GPUS": 1},
        "us-west1": {"NVIDIA_L4_GPUS": 5},
        "project": {"GPUS_ALL_REGIONS": 64},
    }
    found = {one.about: one for one in cloud(project, "prod", "dev")}
    assert found["nvidia-l4 in us-central1"].level == "good"
    assert found["nvidia-l4 in us-central1"].said == "NVIDIA_L4_GPUS: 7 granted, 0 in use by all, 7 asked for at most"
    assert found["spot nvidia-l4 in us-central1"].level == "good"
    assert found["nvidia-l4 in us-west1"].level == "bad"
    assert "fleet.nodes.max" in found["nvidia-l4 in us-west1"].fix
    google.quotas["project"]["GPUS_ALL_REGIONS"] = 4
    assert {one.about: one for one in cloud(project, "prod", "dev")}["GPU quota of my-project"].level == "bad"


def on(project: Path, machine: str, gpu: str, *, spot: bool = False) -> list[doctor.Finding]:
    """The findings about two of these machines in us-central1, without a fallback to others."""
    stack = stacks.load_stack("prod", project)
    accelerator = stack.release.accelerator.model_copy(update={"gpu": gpu})
    release = stack.release.model_copy(update={"accelerator": accelerator})
    nodes = stacks.Nodes(min=1, max=2)
    regions = {"regions": ("us-central1",), "spot": spot, "fallback": False, "nodes": nodes, "machine_type": machine}
    fleet = stack.fleet.model_copy(update=regions)
    return list(doctor.cloud([stack.model_copy(update={"fleet": fleet, "release": release})]))


NEW = [("a3-highgpu-8g", "nvidia-h100-80gb", "NVIDIA_H100"), ("a3-ultragpu-8g", "nvidia-h200-141gb", "NVIDIA_H200")]


@pytest.mark.parametrize(("machine", "gpu", "name"), NEW)
def test_the_newer_gpus_are_granted_by_family_on_demand_and_by_region_on_spot(
    project: Path, google: Google, machine: str, gpu: str, name: str
) -> None:
    here, others = ["us-central1"], ["us-west1", "us-central1"]
    google.families = [
        {"dimensions": {}, "details": {"value": "0"}, "applicableLocations": others},
        {"dimensions": {"gpu_family": name, "region": "us-central1"}, "details": {"value": "16"}, "applicableLocations": here},
        {"dimensions": {"gpu_family": "NVIDIA_B200"}, "details": {"value": "64"}, "applicableLocations": others},
    ]  # fmt: skip
    found = about(on(project, machine, gpu), f"{gpu} in us-central1")
    assert (found.level, found.said) == ("good", f"GPUS_PER_GPU_FAMILY {name}: 16 granted, 16 asked for at most")
    google.families[1]["details"]["value"] = "8"
    assert about(on(project, machine, gpu), f"{gpu} in us-central1").level == "bad"
    # What is granted to nobody in particular counts, too; spot machines have a quota of their own.
    del google.families[1]
    assert "0 granted" in about(on(project, machine, gpu), f"{gpu} in us-central1").said
    google.quotas = {"us-central1": {f"PREEMPTIBLE_{name}_GPUS": 16}}
    assert about(on(project, machine, gpu, spot=True), f"spot {gpu}").level == "good"
    google.quotas = {"us-central1": {f"PREEMPTIBLE_{name}_GPUS": 15}}
    assert about(on(project, machine, gpu, spot=True), f"spot {gpu}").level == "bad"


def test_a_family_that_is_not_told_is_unknown_with_what_would_tell_it(project: Path, google: Google) -> None:
    google.families = None
    found = about(on(project, "a3-highgpu-8g", "nvidia-h100-80gb"), "nvidia-h100-80gb of my-project")
    assert (found.level, found.fix) == (
        "unknown",
        "gcloud services enable cloudquotas.googleapis.com --project my-project",
    )
    google.families = [{"dimensions": {"gpu_family": "NVIDIA_H200"}, "details": {"value": "64"}}, {"details": {}}]
    found = about(on(project, "a3-highgpu-8g", "nvidia-h100-80gb"), "nvidia-h100-80gb in us-central1")
    assert found.level == "unknown"
    assert "GPUS_PER_GPU_FAMILY NVIDIA_H100" in found.said


def test_every_gpu_of_the_catalog_that_google_rents_has_a_name_in_quotas() -> None:
    from tollgate.doctor._cloud import NAMES

    rented = {machine.gpu for machine in planner.catalog().machines.values() if machine.gpu}
    assert len(rented) >= 5
    assert rented <= set(NAMES)


def test_apis_that_are_not_enabled_are_named_with_the_command(project: Path, google: Google) -> None:
    google.enabled -= {"dns", "container"}
    found = about(cloud(project, "prod"), "APIs of my-project")
    assert found.fix == "gcloud services enable container.googleapis.com dns.googleapis.com --project my-project"
    # Nothing of it is asked for where no stack needs it.
    assert "dns" not in about(cloud(project, "dev"), "APIs of my-project").fix


def test_a_quota_that_is_not_told_is_unknown_never_good(project: Path, google: Google) -> None:
    google.quotas = {"us-central1": {}}
    assert {one.level for one in cloud(project, "dev") if "nvidia-l4" in one.about} == {"unknown"}


def test_a_refusal_of_google_is_said_and_the_token_is_not(project: Path, google: Google) -> None:
    google.status = 403
    found = cloud(project, "prod")
    assert "Permission denied" in about(found, "APIs").said
    assert CANARY not in str(found)
    assert google.tokens == {f"Bearer {CANARY}"}


def test_without_credentials_nothing_is_asked(project: Path, google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert about(cloud(project, "prod"), "credentials").level == "bad"
    assert google.asked == []


def test_stacks_on_this_machine_ask_no_cloud(project: Path, google: Google) -> None:
    assert cloud(project, "local-dev") == []
    assert google.asked == []


def test_what_is_asked_for_of_a_cloud_follows_machine_regions_and_fallback(project: Path) -> None:
    from tollgate.doctor._cloud import gpus

    asked = gpus([stacks.load_stack(name, project) for name in ("dev", "grok-1")])
    assert asked == {
        ("us-central1", "nvidia-l4", True): 1,
        ("us-central1", "nvidia-l4", False): 1,
        ("us-central1", "nvidia-a100-80gb", False): 16,
    }
