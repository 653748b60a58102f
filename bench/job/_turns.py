"""Two services measured in turns, run by run: each pair sees the same minute, so that a comparison is not one of two times."""

from __future__ import annotations

from collections.abc import Callable

from ..results import Pair, Result
from ._config import JobConfig


def measure_in_turns(config: JobConfig, measure: Callable[[JobConfig], Result]) -> Pair:
    """As many runs of each as the config says, one here, one there. Stops early when it was interrupted.

    Raises what `measure` raises. Needs `config.against`.
    """
    beside = config.against
    assert beside is not None
    # The key is that of the service measured here, and nobody else's to see.
    there = config.model_copy(update={**dict(beside), "against": None, "result_configmap": "", "api_key": ""})
    ours: list[Result] = []
    theirs: list[Result] = []
    for number in range(config.runs):
        # The same prompts for both of a pair, others for the next.
        one = {"runs": 1, "seed": config.seed * 1000 + number}
        ours.append(measure(config.model_copy(update=one)))
        if not ours[-1].runs:
            break
        theirs.append(measure(there.model_copy(update=one)))
        if not theirs[-1].runs:
            break
    return Pair(result=_one(ours), against=_one(theirs) if theirs else None)


def _one(results: list[Result]) -> Result:
    return results[-1].model_copy(update={"runs": tuple(run for result in results for run in result.runs)})
