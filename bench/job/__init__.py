"""The benchmark inside a cluster: reads its config, measures, leaves the result in a ConfigMap."""

from ._config import JobConfig, load
from ._kube import ConfigMaps
from ._main import line, main, milliseconds

__all__ = ["ConfigMaps", "JobConfig", "line", "load", "main", "milliseconds"]
