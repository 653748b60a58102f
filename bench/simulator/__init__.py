"""A stand-in for Ollama and vLLM: their dialects, their scheduling, the latency of a GPU that is not there.

Imported as `bench.simulator`; started as `python -m bench.simulator ollama|vllm`. Deliberately light: a pod starts one,
so nothing here may import pydantic, rich or the planner before it is needed.
"""

from ._options import Engine, Faults, Gpu, OptionError, Sim, ollama_from, vllm_from

__all__ = ["Engine", "Faults", "Gpu", "OptionError", "Sim", "ollama_from", "vllm_from"]
