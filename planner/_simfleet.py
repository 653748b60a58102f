"""The simulator fleet: CPU nodes that serve the LLM simulator, sized by the operators' formulas.

capacity = nodes × requests/s per node × 0.85; cores = requests/s × 2 ms / 0.70; memory = 2 GB + concurrent × 10 KB;
bandwidth = (request + response bytes) × requests/s; growth 15 % per month. The constants are theirs (assumed here, not
measured by us); what is computed from them is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stacks import InputError

from ._catalog import catalog
from ._plan import HOURS_PER_MONTH
from ._prices import PriceBook, price_book

HEADROOM = 0.85
CPU_SECONDS_PER_REQUEST = 0.002
CPU_UTILIZATION = 0.70
BASE_MEMORY_BYTES = 2e9
MEMORY_BYTES_PER_REQUEST = 10e3
GROWTH_PER_MONTH = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCount:
    """Nodes of one shape that carry a rate. `binds`: `cpu`, `memory` or `network`; costs in USD on demand."""

    machine_type: str
    nodes: int
    requests_per_second_per_node: float
    binds: str
    cost_per_hour: float
    cost_per_month: float
    cost_per_million_requests: float


def capacity(nodes: int, per_node: float) -> float:
    """Requests/s that `nodes` carry with 15 % held back."""
    return nodes * per_node * HEADROOM


def cores(requests_per_second: float) -> float:
    """vCPUs for that rate at 2 ms a request and 70 % utilization."""
    return requests_per_second * CPU_SECONDS_PER_REQUEST / CPU_UTILIZATION


def memory_bytes(concurrent: float) -> float:
    """Bytes of one node with that many requests open."""
    return BASE_MEMORY_BYTES + concurrent * MEMORY_BYTES_PER_REQUEST


def bandwidth_bytes(requests_per_second: float, request_bytes: float, response_bytes: float) -> float:
    """Bytes/s in and out."""
    return (request_bytes + response_bytes) * requests_per_second


def after(months: float, requests_per_second: float = 50_000.0) -> float:
    """The rate after that many months of 15 % growth, compounded."""
    return float(requests_per_second * (1 + GROWTH_PER_MONTH) ** months)


def right_size(
    requests_per_second: float,
    *,
    machine_type: str,
    region: str,
    seconds_open: float = 1.0,
    request_bytes: float = 1e3,
    response_bytes: float = 4e3,
    prices: PriceBook | None = None,
) -> NodeCount:
    """Nodes of that shape, bound by what runs out first on one node, with 15 % held back.

    `seconds_open`: how long a request stays open (concurrent = rate × seconds). Raises InputError for unknown shapes or
    prices, and for a node too small to hold even the base.
    """
    machine = catalog().machine(machine_type, where="machine_type")
    book = prices or price_book()
    per_node = {
        "cpu": machine.vcpus * CPU_UTILIZATION / CPU_SECONDS_PER_REQUEST,
        "memory": (machine.memory_gb * 1e9 - BASE_MEMORY_BYTES) / MEMORY_BYTES_PER_REQUEST / seconds_open,
        "network": machine.network_gbps * 1e9 / 8 / (request_bytes + response_bytes),
    }
    binds = min(per_node, key=lambda name: per_node[name])
    rate = per_node[binds]
    if rate <= 0:
        raise InputError(
            where="machine_type", got=machine_type, allowed="more than 2 GB of memory", fix="choose a larger shape"
        )
    nodes = math.ceil(requests_per_second / (rate * HEADROOM))
    hourly = nodes * float(book.price(machine_type, region=region).on_demand)
    return NodeCount(
        machine_type=machine_type,
        nodes=nodes,
        requests_per_second_per_node=rate,
        binds=binds,
        cost_per_hour=hourly,
        cost_per_month=hourly * HOURS_PER_MONTH,
        cost_per_million_requests=hourly / (requests_per_second * 3600) * 1e6,
    )
