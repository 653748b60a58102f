"""The load from pods of a cluster: an Indexed Job that begins together and whose histograms are merged exactly."""

from ._drive import run
from ._job import IMAGE, PORT, job, secret, service
from ._knob import Knob
from ._kubectl import Kubectl

__all__ = ["IMAGE", "PORT", "Knob", "Kubectl", "job", "run", "secret", "service"]
