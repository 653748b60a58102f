"""`python -m bench.simulator ollama …` and `… vllm …`: stands in for the `ollama` and `vllm` commands of the images.

    python -m bench.simulator ollama [serve]            configured by OLLAMA_* as the real one
    python -m bench.simulator ollama pull|run|ps|list|stop …   a client of such a server, at OLLAMA_HOST
    python -m bench.simulator vllm serve MODEL [flags of vLLM]

The simulator's own settings are TOLLGATE_SIM_*; see `_options.Sim`.
"""

from __future__ import annotations

import sys

from ._options import OptionError, environment, ollama_from, vllm_from, warn

OLLAMA_VERSION = "0.17.4"
VLLM_VERSION = "0.32.0"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a drain, 2 for options that cannot be used, 1 where a client command failed."""
    words = sys.argv[1:] if arguments is None else arguments
    env = environment()
    try:
        if words[:1] == ["ollama"]:
            if words[1:2] not in ([], ["serve"]):
                from ._client import ollama_command

                return ollama_command(words[1:], env)
            options = ollama_from(env, version=env.get("TOLLGATE_SIM_VERSION") or OLLAMA_VERSION)
        elif words[:1] == ["vllm"]:
            options = vllm_from(words[1:], env, version=env.get("TOLLGATE_SIM_VERSION") or VLLM_VERSION)
        else:
            warn(__doc__ or "")
            return 2
        from ._workers import run

        return run(options)
    except OptionError as error:
        warn(f"Error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
