"""The capacity planner: users, promise and budget in; slots, nodes and dollars out, every assumption in sight.

Pure functions over a catalog (`planner/catalog/*.yaml`). Names are imported on first use: the simulator starts one
process per pod and needs only `timing_for`, without pydantic or YAML.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._catalog import Catalog, CatalogModel, Engine, Gpu, Machine, MigProfile, Quantization, catalog, find_model
    from ._check import check, resolve
    from ._memory import Memory, memory_for
    from ._plan import Plan, plan, plan_for
    from ._prices import Price, PriceBook, price_book
    from ._queueing import Prediction, predict
    from ._timing import Timing, timing, timing_for

_HOMES = {
    "Catalog": "_catalog",
    "CatalogModel": "_catalog",
    "Engine": "_catalog",
    "Gpu": "_catalog",
    "Machine": "_catalog",
    "Memory": "_memory",
    "MigProfile": "_catalog",
    "Plan": "_plan",
    "Prediction": "_queueing",
    "Price": "_prices",
    "PriceBook": "_prices",
    "Quantization": "_catalog",
    "Timing": "_timing",
    "catalog": "_catalog",
    "check": "_check",
    "find_model": "_catalog",
    "memory_for": "_memory",
    "plan": "_plan",
    "plan_for": "_plan",
    "predict": "_queueing",
    "price_book": "_prices",
    "resolve": "_check",
    "timing": "_timing",
    "timing_for": "_timing",
}

__all__ = [
    "Catalog",
    "CatalogModel",
    "Engine",
    "Gpu",
    "Machine",
    "Memory",
    "MigProfile",
    "Plan",
    "Prediction",
    "Price",
    "PriceBook",
    "Quantization",
    "Timing",
    "catalog",
    "check",
    "find_model",
    "memory_for",
    "plan",
    "plan_for",
    "predict",
    "price_book",
    "resolve",
    "timing",
    "timing_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
