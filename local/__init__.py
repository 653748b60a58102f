"""The cluster on a laptop: the tools, the embedded control plane, pods as processes, the Kubernetes plugin for Pulumi."""
