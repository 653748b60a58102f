"""Our simulator in an engine's dialect and at its pace, for clusters without GPUs."""

from .service import EngineService


class SimulatorService(EngineService):
    """The simulator in the place of the release's engine."""

    engine = "simulator"
    waiting = "vllm:num_requests_waiting"
    running = "vllm:num_requests_running"
