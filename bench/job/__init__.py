"""The benchmark inside a cluster: reads its config, measures, leaves the result in a ConfigMap."""

from ._config import JobConfig, load
from ._kube import ConfigMaps
from ._main import main

__all__ = ["ConfigMaps", "JobConfig", "load", "main"]
