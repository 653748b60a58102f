"""The engines, one file each, behind one interface. What is in this folder is found by itself: see docs/components.md."""

from __future__ import annotations

import importlib
import pkgutil

import stacks

from .service import ENGINE_NAME, EngineArgs, EngineService

SERVICES: dict[str, type[EngineService]] = {}
for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f".{_found.name}", __name__)
    for _service in vars(_module).values():
        if isinstance(_service, type) and issubclass(_service, EngineService) and _service is not EngineService:
            SERVICES[_service.engine] = _service


def service_for(engine: str, *, simulate: bool = False) -> type[EngineService]:
    """The component of that engine, or the simulator's in its place. Raises InputError naming those that exist."""
    wanted = "simulator" if simulate else engine
    if wanted not in SERVICES:
        raise stacks.InputError(
            where="release, engine",
            got=engine,
            allowed=", ".join(name for name in SERVICES if name != "simulator"),
            fix=f"name one of these, or write components/engines/{engine}.py",
        )
    return SERVICES[wanted]


def waiting_metric(stack: stacks.Stack) -> str | None:
    """The metric of the requests that wait, as the pods of that stack publish it; None where they have none."""
    speaks_openai = stack.serving.simulate and stack.release.engine != "ollama"
    return SERVICES["simulator" if speaks_openai else stack.release.engine].waiting


def running_metric(stack: stacks.Stack) -> str | None:
    """The metric of the requests that are decoded now, as the pods of that stack publish it; None where they have none."""
    speaks_openai = stack.serving.simulate and stack.release.engine != "ollama"
    return SERVICES["simulator" if speaks_openai else stack.release.engine].running


__all__ = [
    "ENGINE_NAME",
    "SERVICES",
    "EngineArgs",
    "EngineService",
    "running_metric",
    "service_for",
    "waiting_metric",
]
