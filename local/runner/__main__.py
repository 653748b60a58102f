"""`python -m local.runner`: the node agent of an embedded cluster; started by its supervisor."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
from pathlib import Path

from local._standard_error import make_patient

from ._runner import Runner
from ._settings import Settings


def main() -> None:
    """Run until stopped."""
    parser = argparse.ArgumentParser(prog="python -m local.runner", description=__doc__)
    parser.add_argument("--name", required=True, help="of the cluster")
    parser.add_argument("--kubeconfig", required=True, type=Path)
    parser.add_argument("--state-dir", required=True, type=Path, help="pods, volumes and logs; survives the runner")
    parser.add_argument("--node-ip", required=True, help="the address of every node, where the kubelet API is served")
    parser.add_argument("--pod-cidr", required=True, type=ipaddress.IPv4Network, help="the slot's range")
    for option in ("--hosts-file", "--kubelet-cert", "--kubelet-key", "--client-ca"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--backoff-seconds", type=float, default=10.0, help="first wait after a crash, then doubled")
    parser.add_argument(
        "--refresh-seconds", type=float, default=60.0, help="between two readings of mounted ConfigMaps"
    )
    parser.add_argument("--keep-pods", action="store_true", help="let pods live on after SIGTERM")
    given = parser.parse_args()
    make_patient()
    asyncio.run(Runner(Settings(**vars(given))).run())


if __name__ == "__main__":
    main()
