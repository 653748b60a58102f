"""What is ours in nftables: kube-proxy's rules under the cluster's own table name, and a guard table.

kube-proxy always calls its table `kube-proxy`, so two in one network namespace would overwrite each other, and one of
ours would fight with the kube-proxy of a real cluster on the same machine. Each of ours therefore finds an `nft` that
renames the table on its way to the real one. That folder is its whole PATH, for a second reason: in nftables mode
kube-proxy removes the iptables rules of a former kube-proxy at start, which on this machine could be someone else's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from stacks import TollgateError

from ._layout import SLOTS, Addresses

_SYSTEM_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def find() -> str:
    """The path of `nft`; `TollgateError` with the fix when there is none."""
    # The system folders of administrators are often missing from a user's PATH.
    found = shutil.which("nft", path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS)))
    if found is None:
        raise TollgateError(
            "nft is missing: kube-proxy programs the addresses of Services through it\n"
            "  fix:     sudo apt-get install nftables   (or your distribution's package of that name)"
        )
    return found


def wrapper(real: str, table: str) -> str:
    """The text of the `nft` that kube-proxy gets: `table` wherever it says `kube-proxy`, in arguments and rules.

    In rules only the table of each command is renamed (`add rule ip kube-proxy …`), never a name or comment later in
    the line: a Service may be called kube-proxy too. Answers name the table nowhere that kube-proxy reads it.
    """
    sed = shutil.which("sed", path="/usr/bin:/bin:/usr/local/bin:" + os.environ.get("PATH", "")) or "/bin/sed"
    rename = f"s/^([a-z]+ [a-z]+ ip6?) kube-proxy( |$)/\\1 {table}\\2/"
    return f"""#!/bin/sh
nft={shlex.quote(real)}
rules=no
count=$#
while [ "$count" -gt 0 ]; do
  argument=$1
  shift
  count=$((count - 1))
  case $argument in
    kube-proxy) argument={shlex.quote(table)} ;;
    -) rules=yes ;;
  esac
  set -- "$@" "$argument"
done
if [ "$rules" = yes ]; then
  {shlex.quote(sed)} -E {shlex.quote(rename)} | "$nft" "$@"
else
  exec "$nft" "$@"
fi
"""


def write_wrapper(folder: Path, addresses: Addresses) -> None:
    """Make `folder` a PATH with nothing but the renaming `nft`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nft"
    path.write_text(wrapper(find(), addresses.nft_table))
    path.chmod(0o755)


def guard(addresses: Addresses) -> str:
    """Rules by which only this machine reaches the slot's addresses and the one port that binds everywhere.

    Linux answers on any interface for any local address, so without them a neighbour on the network could route to the
    API server by way of this machine.
    """
    table = addresses.guard_table
    return f"""table inet {table}
delete table inet {table}
table inet {table} {{
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "lo" accept
    ip daddr {{ {addresses.pod_cidr}, {addresses.service_cidr} }} drop
    tcp dport {addresses.adapter_metrics_port} drop
  }}
}}
"""


def add_guard(addresses: Addresses) -> None:
    """Load `guard`; `OSError` with nft's own words when it refuses."""
    done = subprocess.run([find(), "-f", "-"], input=guard(addresses), capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise OSError(f"nft refused the guard rules: {done.stderr.strip()}")


def remove(addresses: Addresses) -> None:
    """Delete the slot's tables; those that are gone already are fine."""
    nft = find()
    for family, table in (
        ("ip", addresses.nft_table),
        ("ip6", addresses.nft_table),
        ("inet", addresses.guard_table),
    ):
        subprocess.run([nft, "delete", "table", family, table], capture_output=True, timeout=20, check=False)


def slots_with_tables() -> set[int]:
    """The slots that have a table in this network namespace; empty where nft is missing or refuses."""
    try:
        done = subprocess.run([find(), "list", "tables"], capture_output=True, text=True, timeout=20, check=False)
    except (TollgateError, OSError, subprocess.TimeoutExpired):
        return set()
    names = {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("table ")}
    return {n for n in range(SLOTS) if names & {Addresses(slot=n).nft_table, Addresses(slot=n).guard_table}}
