"""A stand-in for Pulumi's Kubernetes resource plugin, for machines where the official one cannot be had.

It serves the types of the `pulumi_kubernetes` SDK to the real Pulumi engine: objects by server-side apply, charts by the
Helm command line. `bin/` holds the executable that Pulumi finds on PATH. What it deliberately leaves out: components that
the official plugin builds inside itself (`helm.v4.Chart`, `yaml.v2`, `kustomize.v2`) and rendering YAML to a folder; it says so.
"""

from pathlib import Path

BIN = Path(__file__).parent / "bin"
"""The folder to put on PATH so that Pulumi finds `pulumi-resource-kubernetes`."""

__all__ = ["BIN"]
