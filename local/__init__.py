"""The embedded cluster on one machine: its tools, its processes, its node agent and its Pulumi provider."""
