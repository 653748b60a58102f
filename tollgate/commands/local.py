"""`tollgate local`: the embedded cluster on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import stacks
from local import cluster

from ._saying import Json, machine

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The embedded cluster: up, down, status, shell, logs."
)

_Name = Annotated[
    str, typer.Option("--name", envvar="TOLLGATE_CLUSTER", help="Which cluster; several run side by side.")
]


@app.command()
def up(name: _Name = "default", as_json: Json = False) -> None:
    """Start the cluster, or say that it runs; builds missing tools first."""
    began = time.monotonic()

    def ready(component: str, seconds: float) -> None:
        typer.echo(f"  {component:<24} ready {seconds:5.1f} s after its start", err=as_json)

    found = cluster.up(name, progress=ready)
    if as_json:
        machine({**_plain(cluster.status(name)), "api_url": found.api_url, "prometheus_url": found.prometheus_url})
        return
    typer.echo(
        f"cluster {name!r} is up ({time.monotonic() - began:.1f} s): API {found.api_url}, Prometheus {found.prometheus_url}"
    )
    suffix = "" if name == "default" else f" --name {name}"
    typer.echo(f"work in it: tollgate local shell{suffix}, then pulumi up -s STACK, kubectl, helm")


@app.command()
def down(name: _Name = "default", as_json: Json = False) -> None:
    """End the cluster; no process, route or file of it is left."""
    was_up = cluster.down(name)
    if as_json:
        machine({"name": name, "was_up": was_up})
        return
    typer.echo(f"cluster {name!r} is gone" if was_up else f"cluster {name!r} was not up")


@app.command()
def status(name: _Name = "default", as_json: Json = False) -> None:
    """What each process does; exits 1 when the cluster is not up."""
    found = cluster.status(name)
    if as_json:
        machine(_plain(found))
    elif found.components:
        table = Table("process", "phase", "pid", "restarts", "MiB", box=None)
        for one in found.components:
            memory = f"{one.memory_bytes / 2**20:.0f}"
            table.add_row(one.name, one.phase, str(one.pid or ""), str(one.restarts), memory)
        Console().print(table)
        typer.echo(f"cluster {name!r} (slot {found.slot}): {found.phase}")
    else:
        others = [other for other in cluster.list_clusters() if other != name]
        typer.echo(f"cluster {name!r} is not up" + (f"; there are {', '.join(others)}" if others else ""))
    if found.phase != "ready":
        raise typer.Exit(1)


def _plain(found: cluster.ClusterStatus) -> dict[str, Any]:
    rows = [{key: getattr(one, key) for key in one.__dataclass_fields__} for one in found.components]
    return {"name": found.name, "slot": found.slot, "phase": found.phase, "components": rows}


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def shell(context: typer.Context, name: _Name = "default") -> None:
    """A shell, or the command given after `--`, in which pulumi, kubectl and helm work on the cluster."""
    found = cluster.load(name)
    root = stacks.project_root()
    env = found.environment(root)
    found.enter()
    command = context.args or [os.environ.get("SHELL", "/bin/sh")]
    if shutil.which(command[0], path=env["PATH"]) is None:
        raise stacks.InputError(
            where="tollgate local shell",
            got=command[0],
            allowed="a program on PATH",
            fix="check its spelling, or install it",
        )
    sys.stdout.flush()
    os.execvpe(command[0], command, env)


@app.command()
def logs(
    what: Annotated[str, typer.Argument(metavar="POD|PROCESS", help="A pod, or a process that `status` names.")],
    name: _Name = "default",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of the pod.")] = "default",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it is written.")] = False,
) -> None:
    """The log of a pod or of one of the cluster's own processes."""
    found = cluster.load(name)
    log = found.state_dir / "logs" / f"{what}.log"
    tail = ["tail", "-n", "200", *(["-f"] if follow else []), str(log)]
    kubectl = ["kubectl", "logs", "-n", namespace, *(["-f"] if follow else []), what]
    env = found.environment(stacks.project_root())
    found.enter()
    command = tail if log.is_file() and "/" not in what else kubectl
    os.execvpe(command[0], command, env)
