"""Pulumi components: a stack's ground, GPU pool, engine, autoscaler, monitoring, benchmark and gate, and all as one."""

from .autoscaler import QueueAutoscaler, QueueAutoscalerArgs
from .benchmark import BenchmarkJob, BenchmarkJobArgs
from .cluster import Cluster, ClusterArgs
from .engine import Engine, EngineArgs
from .gpu_pool import GpuPool, GpuPoolArgs
from .monitoring import Monitoring, MonitoringArgs
from .platform import Platform, PlatformArgs, deploy
from .promotion import PromotionCheck, PromotionCheckArgs

__all__ = [
    "BenchmarkJob",
    "BenchmarkJobArgs",
    "Cluster",
    "ClusterArgs",
    "Engine",
    "EngineArgs",
    "GpuPool",
    "GpuPoolArgs",
    "Monitoring",
    "MonitoringArgs",
    "Platform",
    "PlatformArgs",
    "PromotionCheck",
    "PromotionCheckArgs",
    "QueueAutoscaler",
    "QueueAutoscalerArgs",
    "deploy",
]
