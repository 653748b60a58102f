"""A stack's own objects on the embedded cluster, scaled by the real KEDA under real load, and what can be seen of it."""

from ._ground import Ground, Sample, Watcher
from ._load import Answer, Outcome, ask_at_once, send

__all__ = ["Answer", "Ground", "Outcome", "Sample", "Watcher", "ask_at_once", "send"]
