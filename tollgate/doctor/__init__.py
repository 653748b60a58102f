"""What would hurt later, looked for now: each finding with its fix. Nothing is changed, started or built."""

from ._cloud import cloud
from ._cluster import capabilities, clusters
from ._finding import Finding, Level, worst
from ._machine import machine, pulumi
from ._project import project, unreadable

__all__ = [
    "Finding",
    "Level",
    "capabilities",
    "cloud",
    "clusters",
    "machine",
    "project",
    "pulumi",
    "unreadable",
    "worst",
]
