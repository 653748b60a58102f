"""`python -m bench job --config FILE`: the benchmark Job's process.

Exit code 0: it was measured, whatever came out (judging is the gate's). Otherwise 1 (could not measure) or 2 (wrong
config), with the reason as last line of the log and as the container's termination message.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import time
from pathlib import Path

import stacks

from .. import load as generator
from ..report import line, milliseconds
from ..results import Result
from . import _together as together
from ._config import JobConfig, load
from ._kube import ConfigMaps
from ._turns import measure_in_turns

_TERMINATION_LOG = Path("/dev/termination-log")


def main(path: Path, output: Path | None = None, known: str | None = None) -> int:
    """Run the Job of that config; `output`: also write the result there. Returns the exit code.

    `known`: evidence that leaves nothing to measure; its name stands in the result's place.
    """
    try:
        config = load(path)
        pair = None
        maps = ConfigMaps() if config.result_configmap else None
        labels = {"app.kubernetes.io/name": "bench", "tollgate.dev/stack": config.stack}
        if known:
            if maps is not None:
                maps.store(config.namespace, config.result_configmap, json.dumps({"known": known}), labels)
            return _end(f"nothing to measure: evidence {known} of the same is valid", 0)
        if maps is not None:
            _await_rollout(maps, config)
            seen = maps.surroundings(str(config.environment.get("accelerator", "")))
            config = config.model_copy(update={"environment": {**seen, **config.environment}})
        if config.coordinator and together.index() > 0:
            together.follow(config, together.index())
            return _end("the coordinator has what this pod measured", 0)
        if config.coordinator:
            result = together.lead(config, lambda crews: measure(config, crews), say)
            for piece in together.pieces(result.model_dump_json()):
                say(piece)
        elif config.against is not None:
            _come_first()
            pair = measure_in_turns(config, measure)
            result = pair.result
        else:
            _come_first()
            result = measure(config)
        text = (pair or result).model_dump_json()
        if output is not None:
            output.write_text(text)
        if maps is not None:
            maps.store(config.namespace, config.result_configmap, text, labels)
            say(f"result stored as ConfigMap {config.namespace}/{config.result_configmap}")
    except stacks.TollgateError as error:
        return _end(" ".join(str(error).split()), error.exit_code)
    except OSError as error:
        return _end(f"{type(error).__name__}: {error}", 1)
    for number, run in enumerate(result.runs, 1):
        say(f"run {number}: {summary(run.metrics)}{'' if run.valid else f'; INVALID, {run.invalid_because}'}")
    if not result.runs:
        return _end("interrupted before anything was measured", 1)
    valid = sum(run.valid for run in result.runs)
    return _end(f"measured: {valid} of {len(result.runs)} runs valid", 0)


def measure(config: JobConfig, crews: generator.Crews | None = None) -> Result:
    """The benchmark itself, with progress on standard output, at most one line a second."""
    said = -math.inf

    def progress(now: generator.Progress) -> None:
        nonlocal said
        if time.monotonic() - said >= 1.0:
            said = time.monotonic()
            say(line(now))

    return generator.run(
        config.target(),
        config.traffic,
        config.settings(),
        release=config.release,
        stack=config.stack,
        replicas=config.replicas,
        costs=generator.Costs(objectives=config.objectives, per_hour_usd=config.cost_per_hour_usd),
        environment=config.environment,
        scenario=config.scenario,
        crews=crews,
        progress=together.teller(say) if config.coordinator else progress,
        say=say,
    )


def _await_rollout(maps: ConfigMaps, config: JobConfig) -> None:
    """Helm counts an upgrade as done while replicas of the release before still serve; measured would be a mixture."""
    if not config.workload:
        return
    end, said = time.monotonic() + config.rollout_timeout, ""
    while True:
        try:
            lacks = maps.rollout(config.namespace, config.workload)
        except (OSError, http.client.HTTPException) as error:
            lacks = f"the API server does not answer: {error}"
        if not lacks:
            return
        if time.monotonic() > end:
            raise stacks.TollgateError(
                f"{config.workload} was not rolled out within {config.rollout_timeout:.0f} s: {lacks}"
            )
        if lacks != said:
            say(f"waiting for {config.workload}: {lacks}")
        said = lacks
        time.sleep(0.5)


def _come_first() -> None:
    """Where it is allowed, run before what shares the machine: a client that waits for a core measures its own wait."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def say(text: str) -> None:
    """One line of the log, at once."""
    print(text, flush=True)


def summary(metrics: dict[str, float]) -> str:
    """The few numbers that are asked for first."""
    ttft, e2e = metrics.get("ttft_p95_seconds", math.nan), metrics.get("e2e_p95_seconds", math.nan)
    return (
        f"{metrics.get('requests_per_second', 0):.2f} req/s, "
        f"{metrics.get('output_tokens_per_second', 0):.0f} tokens/s, "
        f"ttft p95 {milliseconds(ttft)}, e2e p95 {milliseconds(e2e)}, errors {metrics.get('error_rate', 0):.2%}"
    )


def _end(text: str, code: int) -> int:
    say(text)
    if _TERMINATION_LOG.is_file():
        _TERMINATION_LOG.write_text(text[:4096])
    return code
