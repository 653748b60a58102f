"""Google Cloud: credentials, APIs that are enabled, GPU quota against what the stacks ask for.

Read-only calls of the Service Usage API (`services:batchGet`), of Compute Engine (`projects.get`, `regions.get`) and of Cloud
Quotas (`quotaInfos.get`): https://cloud.google.com/service-usage/docs/reference/rest,
https://cloud.google.com/compute/docs/reference/rest/v1 and https://cloud.google.com/docs/quotas/reference/rest. Other endpoints
are named by the variables that gcloud reads for it.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import planner
import stacks

from ._finding import Finding

_SECONDS = 20.0
_ALWAYS = (
    "compute.googleapis.com",
    "container.googleapis.com",
    "iam.googleapis.com",
    "cloudresourcemanager.googleapis.com",
)
# GPU of the catalog -> as Compute Engine calls it in names of quotas (https://cloud.google.com/compute/resource-usage#gpu_quota).
# In a region there is NVIDIA_…_GPUS, and PREEMPTIBLE_NVIDIA_…_GPUS for spot machines.
NAMES = {
    "nvidia-l4": "NVIDIA_L4",
    "nvidia-tesla-t4": "NVIDIA_T4",
    "nvidia-tesla-a100": "NVIDIA_A100",
    "nvidia-a100-80gb": "NVIDIA_A100_80GB",
    "nvidia-h100-80gb": "NVIDIA_H100",
    "nvidia-h100-mega-80gb": "NVIDIA_H100_MEGA",
    "nvidia-h200-141gb": "NVIDIA_H200",
    "nvidia-b200": "NVIDIA_B200",
}
# Machines on demand with the newer of them have no quota in the region's own list: one of Cloud Quotas counts them all, with
# the GPU as its dimension `gpu_family` (https://cloud.google.com/docs/quotas/api-overview, "rollout" there shows its answer).
_FAMILIES = frozenset({"NVIDIA_H100", "NVIDIA_H100_MEGA", "NVIDIA_H200", "NVIDIA_B200"})
_BY_FAMILY = "GPUS-PER-GPU-FAMILY-per-project-region"
_ALL_REGIONS = "GPUS_ALL_REGIONS"


class _Refused(Exception):
    """What Google, or the lack of it, says."""


def cloud(wanted: Sequence[stacks.Stack]) -> Iterator[Finding]:
    """Everything about the projects of the stacks with target gke; nothing for others."""
    grounds = [stack for stack in wanted if stack.target == "gke"]
    if not grounds:
        return
    if shutil.which("gke-gcloud-auth-plugin") is None:
        yield Finding(
            area="cloud", about="gke-gcloud-auth-plugin", level="warning",
            said="not on PATH: kubectl and Pulumi ask it for tokens", fix="gcloud components install gke-gcloud-auth-plugin",
        )  # fmt: skip
    try:
        token = _token()
    except _Refused as refused:
        yield Finding(
            area="cloud", about="credentials", level="bad", said=str(refused),
            fix="gcloud auth application-default login, or set GOOGLE_OAUTH_ACCESS_TOKEN",
        )  # fmt: skip
        return
    yield Finding(area="cloud", about="credentials", level="good", said="an access token")
    for project in dict.fromkeys(str(stack.project) for stack in grounds):
        here = [stack for stack in grounds if stack.project == project]
        yield from _apis(project, here, token)
        yield from _quotas(project, here, token)


def _apis(project: str, here: Sequence[stacks.Stack], token: str) -> Iterator[Finding]:
    needed = list(_ALWAYS)
    if any(stack.dns is not None for stack in here):
        needed.append("dns.googleapis.com")
    if any(stack.serving.cache is not None and stack.serving.cache.kind == "gcs" for stack in here):
        needed.append("storage.googleapis.com")
    about = f"APIs of {project}"
    query = "&".join(f"names=projects/{project}/services/{name}" for name in needed)
    try:
        found = _ask(
            "SERVICEUSAGE",
            "https://serviceusage.googleapis.com/",
            f"v1/projects/{project}/services:batchGet?{query}",
            token,
        )
        services = [one for one in found.get("services", ()) if isinstance(one, dict)]
    except _Refused as refused:
        yield Finding(
            area="cloud", about=about, level="bad", said=str(refused), fix=f"gcloud projects describe {project}"
        )
        return
    enabled = {str(one.get("name", "")).rpartition("/")[2] for one in services if one.get("state") == "ENABLED"}
    missing = [name for name in needed if name not in enabled]
    if missing:
        yield Finding(
            area="cloud", about=about, level="bad", said=f"not enabled: {', '.join(missing)}",
            fix=f"gcloud services enable {' '.join(missing)} --project {project}",
        )  # fmt: skip
    else:
        yield Finding(area="cloud", about=about, level="good", said=f"enabled: {', '.join(needed)}")


def gpus(here: Sequence[stacks.Stack]) -> dict[tuple[str, str, bool], int]:
    """(region, GPU, spot) -> GPUs that these stacks ask for at most. A spot pool with a fallback asks for both."""
    asked: dict[tuple[str, str, bool], int] = defaultdict(int)
    for stack in here:
        machine = planner.catalog().machine(stack.fleet.machine_type)
        for fleet in stack.fleet.split():
            for spot in (True, False) if fleet.spot and fleet.fallback else (fleet.spot,):
                asked[fleet.regions[0], str(machine.gpu), spot] += fleet.nodes.max * machine.gpus
    return dict(asked)


def _quotas(project: str, here: Sequence[stacks.Stack], token: str) -> Iterator[Finding]:
    asked = gpus(here)
    base = f"compute/v1/projects/{project}"
    where = ("COMPUTE", "https://compute.googleapis.com/")
    for region in sorted({region for region, gpu, spot in asked if spot or NAMES.get(gpu) not in _FAMILIES}):
        try:
            granted = _limits(_ask(*where, f"{base}/regions/{region}", token))
        except _Refused as refused:
            yield Finding(
                area="cloud", about=f"GPU quota in {region}", level="unknown", said=str(refused),
                fix=f"gcloud compute regions describe {region} --project {project}",
            )  # fmt: skip
            continue
        for (place, gpu, spot), number in sorted(asked.items()):
            if place == region and (spot or NAMES.get(gpu) not in _FAMILIES):
                metric = f"{'PREEMPTIBLE_' if spot else ''}{NAMES[gpu]}_GPUS" if gpu in NAMES else ""
                yield _quota(project, region, gpu, spot, number, metric, granted.get(metric))
    yield from _families(project, asked, token)
    try:
        whole = _limits(_ask(*where, base, token)).get(_ALL_REGIONS)
    except _Refused:
        return
    if whole is not None and whole[0] < (total := sum(asked.values())):
        yield Finding(
            area="cloud", about=f"GPU quota of {project}", level="bad",
            said=f"{_ALL_REGIONS}: {whole[0]:g} granted, {total} asked for by {_names(here)}", fix=_request(project),
        )  # fmt: skip


def _families(project: str, asked: Mapping[tuple[str, str, bool], int], token: str) -> Iterator[Finding]:
    """Of machines on demand with the newer GPUs."""
    mine = {key: number for key, number in asked.items() if not key[2] and NAMES.get(key[1]) in _FAMILIES}
    if not mine:
        return
    path = f"v1/projects/{project}/locations/global/services/compute.googleapis.com/quotaInfos/{_BY_FAMILY}"
    try:
        rows = _ask("CLOUDQUOTAS", "https://cloudquotas.googleapis.com/", path, token).get("dimensionsInfos")
    except _Refused as refused:
        yield Finding(
            area="cloud", about=f"{', '.join(sorted({gpu for _, gpu, _ in mine}))} of {project}", level="unknown",
            said=f"{_BY_FAMILY}: {refused}", fix=f"gcloud services enable cloudquotas.googleapis.com --project {project}",
        )  # fmt: skip
        return
    for (region, gpu, spot), number in sorted(mine.items()):
        limit = granted_to(rows, {"region": region, "gpu_family": NAMES[gpu]})
        metric = f"GPUS_PER_GPU_FAMILY {NAMES[gpu]}"
        yield _quota(project, region, gpu, spot, number, metric, None if limit is None else (limit, None))


def granted_to(rows: Any, wanted: Mapping[str, str]) -> float | None:
    """The value of the row of `dimensionsInfos` that says most about `wanted`, infinite for -1; None where none says a number."""
    best, found = -1, None
    for row in rows if isinstance(rows, list) else ():
        try:
            dimensions = dict(row.get("dimensions") or {})
            elsewhere = row.get("applicableLocations") and wanted["region"] not in row["applicableLocations"]
            if elsewhere or any(wanted.get(key) != value for key, value in dimensions.items()):
                continue
            value = float(row["details"]["value"])
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        if len(dimensions) > best:
            best, found = len(dimensions), math.inf if value < 0 else value
    return found


def _quota(
    project: str, region: str, gpu: str, spot: bool, number: int, metric: str, granted: tuple[float, float | None] | None
) -> Finding:  # fmt: skip
    """`granted`: limit and, where it is known, what all use of it."""
    about = f"{'spot ' if spot else ''}{gpu} in {region}"
    if granted is None:
        return Finding(
            area="cloud", about=about, level="unknown",
            said=f"{number} asked for; Google does not tell what is granted{f' as {metric}' if metric else ''}",
            fix=_request(project),
        )  # fmt: skip
    limit, usage = granted
    used = "" if usage is None else f", {usage:g} in use by all"
    said = f"{metric}: {limit:g} granted{used}, {number} asked for at most"
    if limit < number:
        return Finding(area="cloud", about=about, level="bad", said=said, fix=_request(project))
    return Finding(area="cloud", about=about, level="good", said=said)


def _limits(answer: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Metric -> (granted, in use)."""
    found = {}
    for one in answer.get("quotas", ()):
        try:
            found[str(one["metric"])] = (float(one["limit"]), float(one.get("usage", 0)))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _request(project: str) -> str:
    return f"ask for more: Google Cloud console, IAM & Admin, Quotas, project {project}; or lower fleet.nodes.max"


def _names(here: Sequence[stacks.Stack]) -> str:
    return ", ".join(stack.name for stack in here)


def _token() -> str:
    if given := os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN"):
        return given
    for command in (
        ["gcloud", "auth", "application-default", "print-access-token"],
        ["gcloud", "auth", "print-access-token"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError):
            raise _Refused("no gcloud on PATH, and no GOOGLE_OAUTH_ACCESS_TOKEN") from None
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    raise _Refused("gcloud has no credentials")


def _ask(api: str, default: str, path: str, token: str) -> Mapping[str, Any]:
    import httpx2

    endpoint = os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}") or default
    try:
        answer = httpx2.get(
            f"{endpoint.rstrip('/')}/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=_SECONDS
        )
        found = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise _Refused(f"{endpoint} does not answer: {type(error).__name__}") from None
    if answer.status_code != 200 or not isinstance(found, dict):
        why = found.get("error", {}).get("message", "") if isinstance(found, dict) else ""
        raise _Refused(f"refused ({answer.status_code}): {str(why)[:200] or 'no reason given'}")
    return found
