"""Chart values from a release and a plan, and the digest that names a release everywhere."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

import planner
import stacks

# A start may take this many times as long as the plan says before Kubernetes gives the pod up: disks, image streaming
# and registries vary more than GPUs do (409 s against 199 s for the same 8B model on an L4, llm-d PR 1902).
_LOAD_PATIENCE = 5


@dataclass(frozen=True, kw_only=True)
class UpstreamChart:
    """A chart that others keep, pinned; `values/upstream/<engine>.yaml.j2` says in its words what ours would."""

    name: str
    repository: str
    version: str


UPSTREAM = {
    "ollama": UpstreamChart(name="ollama", repository="https://otwld.github.io/ollama-helm", version="1.77.0"),
    "vllm": UpstreamChart(
        name="vllm-stack", repository="https://vllm-project.github.io/production-stack", version="0.1.12"
    ),
}


def chart_of(release: stacks.Release) -> Path | UpstreamChart:
    """Where a release's chart is: a folder of ours, or with `chart: upstream` the engine's own, pinned.

    Raises InputError naming those that exist.
    """
    if release.chart == "upstream":
        if release.engine in UPSTREAM:
            return UPSTREAM[release.engine]
        raise stacks.InputError(
            where="release, chart",
            got=f"upstream with engine {release.engine}",
            allowed=f"upstream with {' or '.join(UPSTREAM)}, or engine",
            fix="set chart to engine",
        )
    return chart_path(release.chart)


def chart_path(chart: str) -> Path:
    """The folder of one of our charts. Raises InputError naming those that exist."""
    # Beside this room in a checkout and in an installed Tollgate alike.
    folder = Path(__file__).resolve().parents[1] / "charts"
    known = sorted(path.parent.name for path in folder.glob("*/Chart.yaml"))
    if chart not in known:
        raise stacks.InputError(
            where="release, chart",
            got=chart,
            allowed=", ".join([*known, "upstream"]),
            fix="name one of these charts in the release file",
        )
    return folder / chart


def release_values(release: stacks.Release) -> dict[str, Any]:
    """The values of charts/engine that the release alone fixes; `parallelism.slots: auto` is filled by the planner first.

    Raises InputError for an engine without a template.
    """
    resolved = planner.resolve(release)
    known = sorted(path.name.removesuffix(".yaml.j2") for path in Path(__file__).parent.glob("*.yaml.j2"))
    if release.engine not in known or release.engine == "simulator":
        raise stacks.InputError(
            where="release, engine",
            got=release.engine,
            allowed=", ".join(name for name in known if name != "simulator"),
            fix=f"name one of these, or write values/{release.engine}.yaml.j2",
        )
    tensor = resolved.parallelism.tensor
    return render_template(
        f"{release.engine}.yaml.j2",
        release=resolved,
        slots=resolved.parallelism.slots,
        quantization=planner.catalog().quantization(resolved.quantization).id,
        nodes=nodes_per_replica(resolved),
        node_selector=_node_selector(resolved.accelerator),
        # Ranks of one node pass activations through it (vllm#1710); 2Gi is what one rank needs at most.
        shm=json.dumps(f"{4 * tensor if tensor > 1 else 2}Gi"),
        load_seconds=load_seconds(resolved),
    )


def load_seconds(release: stacks.Release, disk_gb_per_second: float | None = None) -> int:
    """Seconds within which a pod must have started: weights from disk and process start, five times over, and some.

    The disk reads at the engine's rate in `planner/catalog`, or at the given one (GB/s) where that is slower.
    """
    times, engine = planner.timing(release), planner.catalog().engine(release.engine)
    load = times.load_seconds
    if disk_gb_per_second is not None:
        load *= max(1.0, engine.disk_gb_per_second / disk_gb_per_second)
    return math.ceil((load + times.start_seconds) * _LOAD_PATIENCE / 30) * 30 + 30


def nodes_per_replica(release: stacks.Release) -> int:
    """Nodes over which one replica's ranks are spread."""
    return max(1, release.parallelism.tensor * release.parallelism.pipeline // release.accelerator.count)


def release_digest(release: stacks.Release) -> str:
    """`sha256:…` over the release, its rendered values and the files of its chart: the same on every stack.

    The file's name is left out: two files that say the same are the same release.
    """
    return stacks.digest(
        {
            "release": planner.resolve(release).model_dump(mode="json", exclude={"name"}),
            "values": release_values(release),
            "chart": _chart(release),
        }
    )


def artifacts(release: stacks.Release) -> dict[str, str]:
    """What a release is made of, each by its own `sha256:…`: rendered values, chart, and the image where it is named by digest.

    Of a chart that others keep it is the digest of its repository, name and version.
    """
    found = {"values": stacks.digest(release_values(release)), f"chart {release.chart}": stacks.digest(_chart(release))}
    image, _, digest = release.image.partition("@")
    return {**found, f"image {image}": digest} if digest else found


def render_template(name: str, **context: Any) -> dict[str, Any]:
    """One of our templates as values. Raises TollgateError where it is not a mapping."""
    loaded = yaml.safe_load(_environment().get_template(name).render(**context))
    if not isinstance(loaded, dict):
        raise stacks.TollgateError(f"values/{name} did not render to a mapping")
    return loaded


def _node_selector(accelerator: stacks.Accelerator) -> dict[str, str]:
    """GKE's labels of nodes with that GPU and slice."""
    selector = {"cloud.google.com/gke-accelerator": accelerator.gpu}
    if accelerator.mig_profile:
        selector["cloud.google.com/gke-gpu-partition-size"] = accelerator.mig_profile
    return selector


def _chart(release: stacks.Release) -> dict[str, str]:
    chart = chart_of(release)
    return _files(chart) if isinstance(chart, Path) else vars(chart)


def _files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=False
    )
    # Every value passes through JSON, which is YAML: a model's name cannot break out of its place.
    environment.filters["yaml"] = json.dumps
    return environment
