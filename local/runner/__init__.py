"""The pod runner: a kubelet whose containers are processes on this machine.

It runs as a process of its own (`python -m local.runner`); nothing of it is imported elsewhere. Deliberately not here: images
(a table maps the known ones to local commands), users and rights of containers, CPU and memory limits.
"""

__all__: list[str] = []
