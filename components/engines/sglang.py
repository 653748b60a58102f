"""SGLang: this file, values/sglang.yaml.j2 and its constants for the planner are all that it needs."""

from .service import EngineService


class SglangService(EngineService):
    """SGLang with one model; finishes what is in flight by itself before it stops."""

    engine = "sglang"
    waiting = "sglang:num_queue_reqs"
    running = "sglang:num_running_reqs"
    memory_share = 0.88
