"""The load from pods of a cluster: an Indexed Job that begins together and whose histograms are merged exactly."""

from ._kubectl import Kubectl

__all__ = ["Kubectl"]
