"""The capacity planner: users, promise and budget in; slots, nodes and dollars out, every assumption in sight.

Pure functions over a catalog (`planner/catalog/*.yaml`). Names are imported on first use: the simulator starts one
process per pod and needs only `timing_for`, without pydantic or YAML.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._aiconfigurator import aiconfigurator_timing
    from ._answers import Point, as_release, headroom, longest_reply, nearest, over_slots, over_users
    from ._billing import URL as BILLING_URL
    from ._billing import refresh as refresh_prices
    from ._catalog import Catalog, CatalogModel, Engine, Gpu, Machine, MigProfile, Quantization, catalog, find_model
    from ._check import check, resolve
    from ._explore import Choice, Search, cheapest, choices, frontier, limits
    from ._fit import Calibration, Measured, calibrate, comparable, from_result, read_results
    from ._html import page as html_page
    from ._memory import Memory, memory_for
    from ._plan import Plan, plan, plan_for
    from ._prices import Price, PriceBook, price_book
    from ._queueing import Prediction, predict
    from ._render import Rendered, rendered, rendered_models
    from ._render import markdown as report_markdown
    from ._report import Report, choice_json, report_search, report_stack
    from ._report import as_json as report_json
    from ._simfleet import right_size
    from ._timing import Timing, timing, timing_for

# public name -> (module, name there)
_HOMES = {
    "Calibration": ("_fit", "Calibration"),
    "Catalog": ("_catalog", "Catalog"),
    "BILLING_URL": ("_billing", "URL"),
    "CatalogModel": ("_catalog", "CatalogModel"),
    "Choice": ("_explore", "Choice"),
    "Engine": ("_catalog", "Engine"),
    "Gpu": ("_catalog", "Gpu"),
    "Machine": ("_catalog", "Machine"),
    "Measured": ("_fit", "Measured"),
    "Memory": ("_memory", "Memory"),
    "MigProfile": ("_catalog", "MigProfile"),
    "Plan": ("_plan", "Plan"),
    "Point": ("_answers", "Point"),
    "Prediction": ("_queueing", "Prediction"),
    "Price": ("_prices", "Price"),
    "PriceBook": ("_prices", "PriceBook"),
    "Quantization": ("_catalog", "Quantization"),
    "Rendered": ("_render", "Rendered"),
    "Report": ("_report", "Report"),
    "Search": ("_explore", "Search"),
    "Timing": ("_timing", "Timing"),
    "aiconfigurator_timing": ("_aiconfigurator", "aiconfigurator_timing"),
    "as_release": ("_answers", "as_release"),
    "calibrate": ("_fit", "calibrate"),
    "catalog": ("_catalog", "catalog"),
    "check": ("_check", "check"),
    "cheapest": ("_explore", "cheapest"),
    "comparable": ("_fit", "comparable"),
    "choices": ("_explore", "choices"),
    "find_model": ("_catalog", "find_model"),
    "from_result": ("_fit", "from_result"),
    "frontier": ("_explore", "frontier"),
    "headroom": ("_answers", "headroom"),
    "html_page": ("_html", "page"),
    "limits": ("_explore", "limits"),
    "longest_reply": ("_answers", "longest_reply"),
    "memory_for": ("_memory", "memory_for"),
    "nearest": ("_answers", "nearest"),
    "over_slots": ("_answers", "over_slots"),
    "over_users": ("_answers", "over_users"),
    "plan": ("_plan", "plan"),
    "plan_for": ("_plan", "plan_for"),
    "predict": ("_queueing", "predict"),
    "price_book": ("_prices", "price_book"),
    "read_results": ("_fit", "read_results"),
    "refresh_prices": ("_billing", "refresh"),
    "choice_json": ("_report", "choice_json"),
    "rendered": ("_render", "rendered"),
    "rendered_models": ("_render", "rendered_models"),
    "report_json": ("_report", "as_json"),
    "report_markdown": ("_render", "markdown"),
    "report_search": ("_report", "report_search"),
    "report_stack": ("_report", "report_stack"),
    "right_size": ("_simfleet", "right_size"),
    "resolve": ("_check", "resolve"),
    "timing": ("_timing", "timing"),
    "timing_for": ("_timing", "timing_for"),
}

__all__ = [
    "BILLING_URL",
    "Calibration",
    "Catalog",
    "CatalogModel",
    "Choice",
    "Engine",
    "Gpu",
    "Machine",
    "Measured",
    "Memory",
    "MigProfile",
    "Plan",
    "Point",
    "Prediction",
    "Price",
    "PriceBook",
    "Quantization",
    "Rendered",
    "Report",
    "Search",
    "Timing",
    "aiconfigurator_timing",
    "as_release",
    "calibrate",
    "catalog",
    "cheapest",
    "check",
    "choice_json",
    "choices",
    "comparable",
    "find_model",
    "from_result",
    "frontier",
    "headroom",
    "html_page",
    "limits",
    "longest_reply",
    "memory_for",
    "nearest",
    "over_slots",
    "over_users",
    "plan",
    "plan_for",
    "predict",
    "price_book",
    "read_results",
    "refresh_prices",
    "rendered",
    "rendered_models",
    "report_json",
    "report_markdown",
    "report_search",
    "report_stack",
    "resolve",
    "right_size",
    "timing",
    "timing_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value
