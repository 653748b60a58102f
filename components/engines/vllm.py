"""vLLM: continuous batching, tensor parallelism, replicas that span nodes."""

from .service import EngineService


class VllmService(EngineService):
    """vLLM with one model; drains what is in flight before it stops."""

    engine = "vllm"
    waiting = "vllm:num_requests_waiting"
    running = "vllm:num_requests_running"
    memory_share = 0.92
    upstream_service = "engine-engine-service"
