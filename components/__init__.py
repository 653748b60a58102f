"""Pulumi components: a stack's ground, GPU pool, engine, gateway, operators, DNS, benchmark, gate, and all as one."""

from .autoscaler import QueueAutoscaler, QueueAutoscalerArgs
from .batch import BatchJob, BatchJobArgs, BatchScale, batch_scaled
from .benchmark import BenchmarkJob, BenchmarkJobArgs
from .cluster import Cluster, ClusterArgs
from .dns import FleetDns, FleetDnsArgs
from .engines import EngineArgs, EngineService, service_for
from .engines.ollama import OllamaService
from .engines.sglang import SglangService
from .engines.simulator import SimulatorService
from .engines.vllm import VllmService
from .gateway import Backend, GatewayArgs, InferenceGateway
from .gpu_pool import GpuPool, GpuPoolArgs
from .monitoring import Monitoring, MonitoringArgs
from .monitoring_stack import StackMonitoring, StackMonitoringArgs
from .platform import Platform, PlatformArgs, deploy
from .preflight import refuse
from .program import run
from .promotion import PromotionCheck, PromotionCheckArgs

__all__ = [
    "Backend",
    "BatchJob",
    "BatchJobArgs",
    "BatchScale",
    "BenchmarkJob",
    "BenchmarkJobArgs",
    "Cluster",
    "ClusterArgs",
    "EngineArgs",
    "EngineService",
    "FleetDns",
    "FleetDnsArgs",
    "GatewayArgs",
    "GpuPool",
    "GpuPoolArgs",
    "InferenceGateway",
    "Monitoring",
    "MonitoringArgs",
    "OllamaService",
    "Platform",
    "PlatformArgs",
    "PromotionCheck",
    "PromotionCheckArgs",
    "QueueAutoscaler",
    "QueueAutoscalerArgs",
    "SglangService",
    "SimulatorService",
    "StackMonitoring",
    "StackMonitoringArgs",
    "VllmService",
    "batch_scaled",
    "deploy",
    "refuse",
    "run",
    "service_for",
]
