"""`tollgate demo`: the whole loop on the embedded cluster, told on the terminal."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

import gate
import planner
import stacks
import values
from local import cluster
from tollgate.commands import preview as previews

from ._saying import Json, machine

NAME = "demo"
GOOD, SLOW = "gemma-3-4b-ollama-8", "gemma-3-4b-ollama-1"
_LIMIT_SECONDS = 900


@dataclass
class _Story:
    """What was seen on the way, for the summary."""

    root: Path
    console: Console
    began: float = field(default_factory=time.monotonic)
    number: int = 0
    rows: list[tuple[str, ...]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number += 1
        self.console.print(f"\n[bold]{self.number}. {title}[/bold]  [dim]{self._clock()}[/dim]")
        yield

    def say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _clock(self) -> str:
        return f"{time.monotonic() - self.began:.0f} s"


def demo(
    keep: bool = typer.Option(False, "--keep", help="Leave the cluster running at the end, to look around."),
    as_json: Json = False,
) -> None:
    """Plan, preview, deploy, measure, promote, deploy again; then a release that is refused. About three minutes."""
    story = _Story(root=_copy(stacks.project_root()), console=Console(stderr=as_json))
    try:
        _tell(story)
    finally:
        if keep:
            story.say(
                f"\nthe cluster goes on: tollgate local shell --name {NAME}; end it: tollgate local down --name {NAME}"
            )
        else:
            cluster.down(NAME)
    _summary(story)
    if as_json:
        names = ("what", "verdict", "requests_per_second", "latency_seconds", "note")
        machine({"folder": str(story.root), "rows": [dict(zip(names, row, strict=True)) for row in story.rows]})


def _tell(story: _Story) -> None:
    root = story.root
    with story.console.status("starting the embedded cluster"):
        found = cluster.up(NAME)
    # Without root this starts the command again, inside the cluster's network: nothing is told before.
    found.enter()
    env = found.environment(root)
    with story.step("The embedded cluster: a real control plane on this machine"):
        story.say(f"up in {cluster.status(NAME).ready_after or 0:.1f} s: {found.api_url}")
        making = {
            f"init-{stack}": _start(story, env, "stack", "init", stack, log=f"init-{stack}")
            for stack in ("local-dev", "local-prod")
        }
    with story.step("Plan: 50 users of Gemma 3 4B by Ollama on L4, 8 slots each"):
        _plan(story)
    with story.step("Preview: what that costs"):
        previews.show(previews.collect(root, ["local-dev"], None), story.console)
    with story.step("pulumi up -s local-dev: ten GPU nodes, the engine, then the benchmark as its users would load it"):
        for log, process in making.items():
            _finish(story, process, log)
        _up(story, env, "local-dev")
        _verdict(story, "8 slots on local-dev")
    # The good release has been measured; its stack makes room while production is deployed.
    leaving = _start(story, env, "destroy", "-s", "local-dev", "--yes", "--skip-preview", log="destroy")
    with story.step("pulumi preview -s local-prod: closed, because nothing was promoted"):
        refusal = _pulumi(story, env, "preview", "-s", "local-prod", fails=True)
        story.say(_refusal(refusal), "yellow")
    with story.step("tollgate promote local-dev local-prod, then pulumi up -s local-prod"):
        admission, _ = _promote(root)
        assert admission.verdict is not None
        story.say(gate.table(admission.verdict))
        production = _start(story, env, "up", "-s", "local-prod", "--yes", "--skip-preview", log="up-local-prod")
        _finish(story, leaving, "destroy")
    with story.step("The same with 1 slot, Ollama's default: measured, and refused"):
        path = stacks.stack_path("local-dev", root)
        path.write_text(path.read_text().replace(f"release: {GOOD}", f"release: {SLOW}"))
        _up(story, env, "local-dev")
        _finish(story, production, "up-local-prod")
        proof = "on evidence " + (admission.evidence or "")[7:19]
        story.rows.append(("8 slots on local-prod", "deployed", "", "", proof))
        _verdict(story, "1 slot on local-dev")
        try:
            _promote(root)
        except gate.GateRefused as refused:
            story.say(str(refused), "yellow")
        else:
            raise stacks.TollgateError("the gate let a release in that breaks its promise; this must never happen")


def _plan(story: _Story) -> None:
    table = Table("slots", "nodes", "$/h", "req/s", "latency", "binds", box=None)
    for release in (GOOD, SLOW):
        stack = stacks.load_stack("local-dev", story.root)
        plan = planner.plan(stack.model_copy(update={"release": stacks.load_release(release, story.root)}))
        rate, latency = plan.predicted["requests_per_second"], plan.predicted["e2e_mean_seconds"]
        cost = f"{plan.cost_per_hour_expected_usd:.2f}"
        table.add_row(str(plan.slots), str(plan.nodes_max), cost, f"{rate:.1f}", f"{latency:.1f} s", str(plan.binds))
    story.console.print(table)


def _verdict(story: _Story, what: str) -> None:
    stack = stacks.load_stack("local-dev", story.root)
    entry = gate.newest(stack, story.root, values.release_digest(stack.release))
    if entry is None:
        raise stacks.TollgateError("the benchmark left no evidence")
    runs = gate.result_of(entry).runs
    outcome = str(entry.facts["verdict"]["outcome"])
    rates = [run.metrics["requests_per_second"] for run in runs]
    latencies = [run.metrics["e2e_mean_seconds"] for run in runs]
    rate, latency = sum(rates) / len(rates), sum(latencies) / len(latencies)
    story.say(
        f"measured in {len(runs)} runs: {rate:.1f} req/s, mean latency {latency:.2f} s; verdict: {outcome}",
        "green" if outcome == "pass" else "red",
    )
    story.rows.append((what, outcome, f"{rate:.1f}", f"{latency:.2f}", "evidence " + entry.digest[7:19]))


def _promote(root: Path) -> tuple[gate.Admission, bool]:
    digest = values.release_digest(stacks.load_stack("local-dev", root).release)
    return gate.promote("local-dev", "local-prod", root, release_digest=digest, now=datetime.now(UTC))


def _summary(story: _Story) -> None:
    table = Table("release", "verdict", "req/s", "latency s", "", box=None)
    for row in story.rows:
        table.add_row(*row)
    table.add_row("1 slot on local-prod", "refused", "", "", "never deployed")
    story.console.print()
    story.console.print(table)
    seconds = time.monotonic() - story.began
    shown = story.root.relative_to(Path.cwd()) if story.root.is_relative_to(Path.cwd()) else story.root
    story.say(f"{seconds:.0f} s in all. Stack files, logs and signed evidence: {shown}; nothing is left running.")


# ---------------------------------------------------------------------- pulumi


def _up(story: _Story, env: Mapping[str, str], stack: str) -> None:
    """`pulumi up`, with the benchmark's own progress while it runs."""
    process = _start(story, env, "up", "-s", stack, "--yes", "--skip-preview", log=f"up-{stack}")
    last, seen = "", time.monotonic()
    with story.console.status("deploying") as shown:
        while process.poll() is None:
            time.sleep(0.25)
            if time.monotonic() - seen > 2:
                seen = time.monotonic()
                line = _bench_line(env, stack)
                if line and line != last:
                    last = line
                    shown.update(f"benchmark: {line}")
                    if not story.console.is_terminal:
                        story.say(f"  {line}")
    _finish(story, process, f"up-{stack}")


def _bench_line(env: Mapping[str, str], stack: str) -> str:
    command = ["kubectl", "logs", "-n", stack, "-l", "app.kubernetes.io/name=bench", "--tail=1"]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip()


def _start(story: _Story, env: Mapping[str, str], *arguments: str, log: str) -> subprocess.Popen[bytes]:
    with (story.root / f"{log}.log").open("wb") as output:
        return subprocess.Popen(
            ["pulumi", *arguments, "--non-interactive", "--color", "never"],
            cwd=story.root,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _finish(story: _Story, process: subprocess.Popen[bytes], log: str) -> None:
    code = process.wait(_LIMIT_SECONDS)
    if code != 0:
        text = (story.root / f"{log}.log").read_text(errors="replace")
        raise stacks.TollgateError(
            f"pulumi failed (log: {story.root / log}.log):\n" + "\n".join(text.splitlines()[-30:])
        )


def _pulumi(story: _Story, env: Mapping[str, str], *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(
        ["pulumi", *arguments, "--non-interactive", "--color", "never"],
        cwd=story.root,
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if (done.returncode != 0) is not fails:
        expected = "should have been refused" if fails else "failed"
        raise stacks.TollgateError(f"pulumi {' '.join(arguments)} {expected}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def _refusal(output: str) -> str:
    """The gate's words out of what Pulumi printed."""
    diagnostics = output.partition("Diagnostics:")[2]
    match = re.search(r"error: (.*?)(?=\n\s*\n|\n\s*error: |\Z)", diagnostics, re.DOTALL)
    return re.sub(r"\n {4}", "\n", match.group(1)) if match else output


def _copy(project: Path) -> Path:
    """The project's own files in a folder of the demo, because a promotion edits stack files."""
    root = project / ".tollgate" / NAME
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(project / name, root)
    shutil.copytree(project / "stacks", root / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__", "keys"))
    # The short way: the stage between would measure for another minute what is shown here already.
    pipeline = root / "stacks" / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text().replace("after: local-staging", "after: local-dev"))
    sys.path.insert(0, str(project))
    return root
