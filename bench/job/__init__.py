"""The benchmark inside a cluster: reads its config, measures, leaves the result in a ConfigMap."""

from ._config import JobConfig, load
from ._kube import ConfigMaps
from ._main import main
from ._together import PROGRESS, RESULT, Pieces, pieces, progress_of

__all__ = ["PROGRESS", "RESULT", "ConfigMaps", "JobConfig", "Pieces", "load", "main", "pieces", "progress_of"]
