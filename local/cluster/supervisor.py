"""`python -m local.cluster.supervisor HOME NAME`: owns every process of one cluster for as long as the cluster lives.

It starts them as soon as what they need is ready, starts again what dies, keeps the hosts file current and `state.json` true.
Its children die with it; orphans (the pods of a killed runner) become its own, so that its end is the end of everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from local._standard_error import make_patient
from stacks import TollgateError

from . import _bootstrap, _components, _dns, _hosts, _network, _nft, _pki, _prometheus, _rules, _slots, _state, _system
from ._api import Api, tls
from ._components import MARKER, STEP_KEDA, STEP_MONITORING, Component
from ._layout import DNS_PORT, KUBE_STATE_PORT, Addresses, Layout
from ._plan import Plan

_POLL_SECONDS = 0.05
_LOG_LIMIT = 20 * 2**20
_RESTART_LIMIT_SECONDS = 10.0


class Supervisor:
    """One cluster. `run` returns when it was asked to stop or could not start."""

    def __init__(self, layout: Layout, plan: Plan, slot: int) -> None:
        self._layout, self._plan = layout, plan
        self._addresses = Addresses(slot=slot)
        self._components = _components.components(layout, self._addresses, plan)
        # Beside the folder that is the user's.
        self._rules = layout.state_dir / "prometheus" / "objects"
        self._ready: dict[str, asyncio.Event] = {one.name: asyncio.Event() for one in self._components}
        self._ready |= {STEP_MONITORING: asyncio.Event(), STEP_KEDA: asyncio.Event()}
        self._exits: dict[int, asyncio.Event] = {}
        self._stop = asyncio.Event()
        self._began = time.monotonic()
        self._own_hosts = _hosts.machine_hosts()
        self._unsaved = False
        self._state: dict[str, Any] = {
            "name": layout.name,
            "slot": slot,
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
            "rootless": plan.rootless,
            "phase": "starting",
            "error": "",
            "components": {
                one.name: {"phase": "waiting", "pid": None, "since": None, "ready_after": None, "restarts": 0}
                for one in self._components
            },
        }

    # ------------------------------------------------------------------ state

    def save(self, **changes: Any) -> None:
        """Replace `state.json` as a whole. On a full disk that waits: what keeps processes running must not end with it."""
        self._state.update(changes)
        temporary = self._layout.state.with_name("state.json.new")
        try:
            temporary.write_text(json.dumps(self._state, indent=1))
            temporary.replace(self._layout.state)
            self._unsaved = False
        except OSError as error:
            self._unsaved = True
            print(f"state.json could not be written: {error.strerror}", file=sys.stderr, flush=True)

    def save_again(self) -> None:
        """What `save` could not write."""
        if self._unsaved:
            self.save()

    def _note(self, name: str, **changes: Any) -> None:
        self._state["components"][name].update(changes)
        self.save()

    # ------------------------------------------------------------------ life

    def prepare(self) -> None:
        """Everything that needs no running process: ports, network, keys, files, the view of /etc/hosts."""
        layout, addresses = self._layout, self._addresses
        _network.add(addresses)
        if not self._plan.rootless:
            _nft.add_guard(addresses)
        check_ports(addresses)
        layout.logs.mkdir(exist_ok=True)
        _pki.write(layout.pki, cluster=layout.name, addresses=addresses)
        layout.kubeconfig.write_bytes((layout.pki / "admin.kubeconfig").read_bytes())
        layout.kubeconfig.chmod(0o600)
        folder = layout.state_dir / "prometheus"
        (folder / "rules").mkdir(parents=True, exist_ok=True)
        settings = _prometheus.configuration(
            kubeconfig=layout.pki / "prometheus.kubeconfig",
            addresses=addresses,
            rules=(folder / "rules", self._rules),
        )
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
        _nft.write_wrapper(_components.proxy_path(layout), addresses)
        _hosts.write_in_place(layout.hosts, self._own_hosts)
        _system.new_mounts()
        _system.bind_mount(layout.hosts, Path("/etc/hosts"))
        _system.become_subreaper()

    async def run(self) -> int:
        """Start everything, keep it running, stop it. Gives the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        api = Api(self._addresses.api_url, tls(self._layout.pki))
        keepers = [asyncio.create_task(self._keep(one, api)) for one in self._components]
        steps = asyncio.create_task(self._steps(api))
        hosts = _hosts.HostsFile(self._layout.hosts, self._own_hosts, api)
        others = [
            asyncio.create_task(hosts.follow()),
            asyncio.create_task(_dns.serve(lambda name: hosts.names.get(name), self._addresses.node, DNS_PORT)),
            asyncio.create_task(self._bound_logs()),
            asyncio.create_task(self._save_in_time()),
            asyncio.create_task(self._monitoring(api)),
        ]
        everything = asyncio.gather(*(event.wait() for event in self._ready.values()))
        stopped = asyncio.create_task(self._stop.wait())
        first: list[asyncio.Future[Any]] = [stopped, everything, steps]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if steps.done() and steps.exception() is not None:
            self.save(phase="failed", error=str(steps.exception()))
        elif not stopped.done():
            await asyncio.wait(first[:2], return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done() and self._state["phase"] == "starting":
            self.save(phase="ready", ready_after=round(time.monotonic() - self._began, 2))
            await stopped
        for task in [*keepers, *others, steps]:
            task.cancel()
        await self._end()
        return 0

    async def _steps(self, api: Api) -> None:
        """The objects that components need, as soon as the API server answers."""
        await self._ready["kube-apiserver"].wait()
        data = {name: Path(path) for name, path in self._plan.data.items()}

        async def monitoring() -> None:
            await _bootstrap.create_monitoring(api, self._addresses)
            self._ready[STEP_MONITORING].set()

        async def keda() -> None:
            await _bootstrap.create_keda(
                api,
                self._addresses,
                crds=data["keda-crds"],
                rbac=data["keda-rbac"],
                authority=self._layout.pki / "keda" / "ca.crt",
            )
            self._ready[STEP_KEDA].set()

        await asyncio.gather(monitoring(), keda())

    async def _monitoring(self, api: Api) -> None:
        """What stands in for Prometheus' operator and for kube-state-metrics."""
        await self._ready[STEP_MONITORING].wait()
        url, log = self._addresses.prometheus_url, self._layout.log("prometheus")
        await asyncio.gather(
            _rules.RuleFiles(self._rules, api, url, log).follow(),
            _state.StateMetrics(api, self._addresses.control_plane, KUBE_STATE_PORT).follow(),
        )

    async def _keep(self, one: Component, api: Api) -> None:
        """Start one component when what it needs is ready, and again whenever it ends."""
        for need in one.needs:
            await self._ready[need].wait()
        quick = 0
        while True:
            if one.name == "kube-proxy":
                await self._proxy_node(api)
            began = time.monotonic()
            try:
                pid = self._start(one)
            except OSError as error:
                # Such as a full disk, or no more processes: both pass.
                print(f"{one.name} could not be started: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(1)
                continue
            ended = self._exits[pid]
            self._note(one.name, phase="starting", pid=pid, since=time.time())
            waiting = asyncio.create_task(self._until_ready(one, api, began))
            await ended.wait()
            waiting.cancel()
            self._exits.pop(pid, None)
            self._state["components"][one.name]["restarts"] += 1
            self._note(one.name, phase="down", pid=None)
            quick = quick + 1 if time.monotonic() - began < _RESTART_LIMIT_SECONDS else 0
            await asyncio.sleep(min(_RESTART_LIMIT_SECONDS, 0.1 * 2**quick))

    def _start(self, one: Component) -> int:
        env = {"HOME": str(self._layout.state_dir), "PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        env |= {MARKER: str(self._layout.state_dir), **one.env}
        with self._layout.log(one.name).open("ab") as log:
            process = subprocess.Popen(
                one.argv,
                env=env,
                cwd=self._layout.state_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_system.die_with_parent,
            )
        self._exits[process.pid] = asyncio.Event()
        # `_reap` collects every child; Popen must not look for this one again.
        process.returncode = 0
        return process.pid

    def _reap(self) -> None:
        """Collect all children that have ended, adopted orphans too."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._exits:
                    self._exits[pid].set()

    async def _until_ready(self, one: Component, api: Api, began: float) -> None:
        while not await answers(one.ready, api):
            await asyncio.sleep(_POLL_SECONDS)
        self._note(one.name, phase="ready", ready_after=round(time.monotonic() - began, 2))
        self._ready[one.name].set()
        if one.name == "kube-proxy":
            with contextlib.suppress(httpx2.HTTPError, TollgateError):
                await api.delete(f"/api/v1/nodes/{_bootstrap.PROXY_NODE}")

    async def _proxy_node(self, api: Api) -> None:
        for _ in range(100):
            with contextlib.suppress(httpx2.HTTPError):
                document = _bootstrap.proxy_node(self._addresses)
                answer = await api.post("/api/v1/nodes", document)
                if answer.status_code in (200, 201, 409):
                    return
            await asyncio.sleep(0.1)

    async def _save_in_time(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.save_again()

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(30)
            for path in self._layout.logs.glob("*.log"):
                with contextlib.suppress(OSError):
                    if path.stat().st_size > _LOG_LIMIT:
                        # They are opened for appending: what follows begins at the new end.
                        os.truncate(path, 0)

    async def _end(self) -> None:
        """Stop everything: the runner first, because it takes its pods along, then whatever is left."""
        if self._state["phase"] != "failed":
            self.save(phase="stopping")
        runner = self._state["components"]["runner"]["pid"]
        if runner:
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner, signal.SIGTERM)
            for _ in range(40):
                if not psutil.pid_exists(runner):
                    break
                await asyncio.sleep(_POLL_SECONDS)
        for _ in range(100):
            children = psutil.Process().children(recursive=True)
            if not children:
                break
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            await asyncio.sleep(_POLL_SECONDS)
            self._reap()
        if not self._plan.rootless:
            _nft.remove(self._addresses)
            _network.remove(self._addresses)
        if self._state["phase"] != "failed":
            self.save(phase="down")


async def answers(ready: str, api: Api) -> bool:
    """Whether what `Component.ready` names answers now."""
    try:
        if ready.startswith("tcp://"):
            host, port = ready.removeprefix("tcp://").rsplit(":", 1)
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 1)
            writer.close()
            return True
        if ready.startswith("api:"):
            return (await api.get(ready.removeprefix("api:"))).status_code == 200
        if ready.startswith(api.url):
            return (await api.get(ready.removeprefix(api.url))).status_code == 200
        # The control plane's own serving certificate is not the question here, only that it serves.
        async with httpx2.AsyncClient(verify=False, trust_env=False, timeout=2) as client:
            return (await client.get(ready)).status_code == 200
    except (OSError, httpx2.HTTPError, TimeoutError):
        return False


def check_ports(addresses: Addresses) -> None:
    """Raises TollgateError naming the port, the component that needs it, and who has it."""
    for address, port, component in addresses.listeners:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise TollgateError(
                    f"{component} cannot listen on {address}:{port}: {error.strerror}{_holder(port)}\n"
                    "  fix:     end that process, then `tollgate local up` again"
                ) from None


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


def main(arguments: list[str]) -> int:
    """Run until stopped; what goes wrong before the first process stands in `state.json`."""
    make_patient()
    layout = Layout(home=Path(arguments[0]), name=arguments[1])
    plan = Plan.read(layout.state_dir / "plan.json")
    slot = _slots.take_slot()
    if plan.rootless:
        try:
            _system.new_user_and_network()
        except OSError as error:
            failure = f"this system forbids user namespaces ({error})\n  fix:     {_system.userns_remedy()}"
            layout.state.write_text(
                json.dumps({"phase": "failed", "error": failure, "slot": slot.number, "pid": os.getpid()})
            )
            return 1
    supervisor = Supervisor(layout, plan, slot.number)
    supervisor.save()
    try:
        supervisor.prepare()
    except (OSError, TollgateError) as error:
        supervisor.save(phase="failed", error=str(error))
        return 1
    return asyncio.run(supervisor.run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
