"""The pod runner: a kubelet whose containers are processes on this machine.

It runs as a process of its own (`python -m local.runner`); nothing of it is imported elsewhere.
"""

__all__: list[str] = []
