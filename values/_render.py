"""Chart values from a release and a plan, and the digest that names a release everywhere."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

import planner
import stacks

# A start may take this many times as long as the plan says before Kubernetes gives the pod up: disks, image streaming
# and registries vary more than GPUs do (409 s against 199 s for the same 8B model on an L4, llm-d PR 1902).
_LOAD_PATIENCE = 5
_POOL_LABEL = "tollgate.dev/pool"


def chart_path(chart: str) -> Path:
    """The folder of one of our charts. Raises InputError naming those that exist."""
    folder = Path(str(resources.files("charts"))) if _installed() else Path(__file__).resolve().parents[1] / "charts"
    known = sorted(path.parent.name for path in folder.glob("*/Chart.yaml"))
    if chart not in known:
        raise stacks.InputError(
            where="release, chart",
            got=chart,
            allowed=", ".join(known),
            fix="name one of these charts in the release file",
        )
    return folder / chart


def release_values(release: stacks.Release) -> dict[str, Any]:
    """The chart values that the release alone fixes; `parallelism.slots: auto` is filled by the planner first."""
    resolved = planner.resolve(release)
    template = _environment().get_template(f"{release.engine}.yaml.j2")
    load = math.ceil(planner.timing(resolved).load_seconds * _LOAD_PATIENCE / 30) * 30 + 30
    text = template.render(release=resolved, slots=resolved.parallelism.slots, load_seconds=load)
    loaded = yaml.safe_load(text)
    if not isinstance(loaded, dict):
        raise stacks.TollgateError(f"values/{release.engine}.yaml.j2 did not render to a mapping")
    return loaded


def render(stack: stacks.Stack, plan: planner.Plan) -> dict[str, Any]:
    """All chart values of one stack: the release's, and how much of it this stack runs.

    `replicas` is None where an autoscaler owns the number (nodes.min < nodes.max).
    """
    autoscaled = stack.fleet.nodes.min < stack.fleet.nodes.max
    return {
        **release_values(stack.release),
        "replicas": None if autoscaled else plan.replicas_max,
        # A rollout may stop a fifth of the replicas at once: there are no spare GPUs to surge onto.
        "maxUnavailable": max(1, plan.replicas_max // 5),
        "fleetSelector": {_POOL_LABEL: stack.name},
    }


def release_digest(release: stacks.Release) -> str:
    """`sha256:…` over the release, its rendered values and the files of its chart: the same on every stack.

    The file's name is left out: two files that say the same are the same release.
    """
    resolved = planner.resolve(release)
    return stacks.digest(
        {
            "release": resolved.model_dump(mode="json", exclude={"name"}),
            "values": release_values(release),
            "chart": _chart_files(release.chart),
        }
    )


def _chart_files(chart: str) -> dict[str, str]:
    folder = chart_path(chart)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _installed() -> bool:
    return not (Path(__file__).resolve().parents[1] / "Pulumi.yaml").is_file()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=False
    )
    # Every value passes through JSON, which is YAML: a model's name cannot break out of its place.
    environment.filters["yaml"] = json.dumps
    return environment
