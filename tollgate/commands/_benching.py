"""What `bench` and `tune` share: from options to what is measured, where it is, and what it costs."""

from __future__ import annotations

import http.client
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console

import stacks
from bench import load as generator
from bench import report as reports
from bench import results

if TYPE_CHECKING:
    from bench.matrix import Plan
    from bench.pods import Kubectl

_ENGINES = ("ollama", "vllm", "openai")
_ENDPOINTS = ("chat", "generate")
# Of `--json -`: the document goes there, and what is told on the way to standard error.
STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a service is: `url` as this machine reaches it (empty: it cannot), `inside` as pods of its cluster do."""

    url: str
    inside: str = ""
    kubectl: Kubectl | None = None
    prometheus: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, and what is known of it before: the release's digest, the promises, dollars per hour."""

    target: generator.Target
    place: Place
    release: str
    stack: stacks.Stack | None
    costs: generator.Costs
    replicas: int = 1
    environment: dict[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.stack.name if self.stack else "none"


def place(url: str | None, service: str | None, cluster: str | None, stack: stacks.Stack | None) -> Place:
    """From `--url`, `--service NAMESPACE/NAME[:PORT]`, or the stack's own Service. Raises InputError for none of them."""
    if url is not None and service is not None:
        raise stacks.InputError(where="--url and --service", got="both", allowed="one of them", fix="remove one")
    if url is not None:
        known = _in_cluster(stack, cluster) if stack is not None or cluster is not None else None
        return Place(url=url, kubectl=known[0] if known else None, prometheus=known[1] if known else "")
    if service is None and stack is None:
        raise stacks.InputError(
            where="--url", got="nothing", allowed="a stack's name, --service NAMESPACE/NAME, or --url http(s)://host[:port]",
            fix="say what is to be measured",
        )  # fmt: skip
    namespace, name, port = _named(service) if service else (cast(stacks.Stack, stack).namespace, "engine", "")
    kubectl, prometheus, reachable = _in_cluster(stack, cluster, namespace)
    found = kubectl.get("service", name)
    ports = found["spec"].get("ports") or []
    number = port or str(ports[0]["port"] if ports else 80)
    inside = f"http://{name}.{namespace}.svc:{number}"
    host = _address(found, reachable)
    return Place(url=f"http://{host}:{number}" if host else "", inside=inside, kubectl=kubectl, prometheus=prometheus)


def _named(service: str) -> tuple[str, str, str]:
    namespace, slash, rest = service.partition("/")
    name, _, port = rest.partition(":")
    if not slash or not name or (port and not port.isdigit()):
        raise stacks.InputError(
            where="--service", got=service, allowed="NAMESPACE/NAME or NAMESPACE/NAME:PORT", fix="write for example dev/engine"
        )  # fmt: skip
    return namespace, name, port


def _address(service: dict[str, Any], reachable: bool) -> str:
    """An address of the Service that this machine can reach, or nothing."""
    for entry in (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or []:
        if entry.get("ip") or entry.get("hostname"):
            return str(entry.get("ip") or entry["hostname"])
    address = str(service["spec"].get("clusterIP") or "")
    return address if reachable and address != "None" else ""


def _in_cluster(stack: stacks.Stack | None, cluster: str | None, namespace: str = "") -> tuple[Kubectl, str, bool]:
    """kubectl for the stack's cluster, the address of its Prometheus, and whether Services are reachable from here."""
    from bench.pods import Kubectl

    namespace = namespace or (stack.namespace if stack else "default")
    name = cluster or os.environ.get("TOLLGATE_CLUSTER") or (stack.cluster if stack else "")
    if (stack is not None and stack.target == "local") or (stack is None and name):
        from local import cluster as embedded

        found = embedded.load(name or "default")
        environment = found.environment(stacks.project_root())
        # Without root the cluster has a network of its own: this command is started again inside of it.
        found.enter()
        return Kubectl(environment=environment, namespace=namespace), found.prometheus_url, True
    context = cluster or (stack.cluster if stack is not None and stack.cluster != "default" else "")
    return Kubectl(environment=dict(os.environ), namespace=namespace, context=context), "", False


def subject(
    stack: stacks.Stack | None,
    where: Place,
    *,
    from_pods: bool,
    engine: str | None,
    model: str | None,
    endpoint: str,
    costs: generator.Costs,
    promised: stacks.Objectives | None = None,
    **wire: Any,
) -> Subject:
    """Put together what is measured. Raises InputError naming the option that is missing or wrong."""
    chosen = engine or (stack.release.engine if stack else "openai")
    if chosen not in _ENGINES:
        raise stacks.InputError(where="--engine", got=chosen, allowed=", ".join(_ENGINES), fix="name one of these")
    if endpoint not in _ENDPOINTS:
        raise stacks.InputError(where="--endpoint", got=endpoint, allowed="chat, generate", fix="name one of these")
    asked = model or (stack.release.source if stack else None)
    if asked is None:
        raise stacks.InputError(where="--model", got="nothing", allowed="a model of the service", fix="name it")
    url = (where.inside or where.url) if from_pods else where.url
    if not url:
        raise stacks.InputError(
            where=f"Service {where.inside.removeprefix('http://')}", got="no address outside its cluster",
            allowed="a LoadBalancer, --url, or a load from within", fix="add --pods 1",
        )  # fmt: skip
    if from_pods and where.kubectl is None:
        raise stacks.InputError(
            where="--pods", got="no cluster", allowed="a STACK, --service or --cluster", fix="say in which cluster they run"
        )  # fmt: skip
    target = generator.Target(url=url, engine=cast(Any, chosen), model=asked, endpoint=cast(Any, endpoint), **wire)
    digest, replicas = stacks.digest({"url": url, "engine": chosen, "model": asked}), 1
    environment: dict[str, str | int | float | bool] = {}
    if stack is not None:
        digest, replicas, costs, environment = _of_stack(stack, costs)
    if promised is not None:
        costs = replace(costs, objectives=promised)
    return Subject(
        target=target, place=where, release=digest, stack=stack, costs=costs, replicas=replicas, environment=environment
    )


def _of_stack(
    stack: stacks.Stack, costs: generator.Costs
) -> tuple[str, int, generator.Costs, dict[str, str | int | float | bool]]:
    """The digest of its release, its replicas and dollars per hour by its plan, and what evidence has to match."""
    import planner
    import values

    plan = planner.plan(stack)
    hourly = costs.per_hour_usd if costs.per_hour_usd is not None else plan.cost_per_hour_max_usd
    environment: dict[str, str | int | float | bool] = {
        "target": stack.target,
        "accelerator": stack.release.accelerator.gpu,
        "machine_type": stack.fleet.machine_type,
        "region": stack.fleet.regions[0],
        "simulated": stack.target == "local",
    }
    known = generator.Costs(objectives=stack.objectives, per_hour_usd=hourly)
    return values.release_digest(stack.release), plan.replicas_max, known, environment


def costs(per_hour: float | None, machine: str | None, region: str, nodes: int) -> generator.Costs:
    """Dollars per hour as given, or of so many machines by the price book."""
    if per_hour is not None or machine is None:
        return generator.Costs(per_hour_usd=per_hour)
    import planner

    price = planner.price_book().price(machine, region=region)
    return generator.Costs(per_hour_usd=float(price.on_demand) * nodes)


def observer(subject: Subject, prometheus: str | None, console: Console) -> generator.Observer | None:
    """The server's side: Prometheus where there is one, else the engine's own metrics where it has any."""

    def say(text: str) -> None:
        console.print(text, style="yellow", soft_wrap=True)

    url = prometheus or subject.place.prometheus
    if url:
        namespace = subject.place.kubectl.namespace if subject.place.kubectl is not None else ""
        return generator.Prometheus(url=url, namespace=namespace, say=say)
    if subject.target.url == subject.place.inside != subject.place.url:
        return None
    try:
        status, body = generator.get(subject.target, "/metrics", timeout=2.0)
    except (OSError, http.client.HTTPException):
        return None
    known = status == 200 and generator.scraped(body.decode(errors="replace"))
    return generator.Scrape(subject.target) if known else None


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """A benchmark that only has to be started; from `pods` pods of the service's cluster, or from here (0)."""

    subject: Subject
    traffic: stacks.Traffic
    settings: generator.Settings
    scenario: generator.Scenario
    console: Console
    observer: generator.Observer | None
    pods: int = 0

    def __call__(self) -> results.Result:
        """With the live view."""
        with reports.live(self.console) as (progress, say):
            return self.run(progress=progress, say=say)

    def run(
        self,
        *,
        progress: Callable[[generator.Progress], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
        stopper: generator.Stopper | None = None,
    ) -> results.Result:
        """Without one."""
        subject = self.subject
        if self.pods:
            return self._from_pods(progress, say)
        return generator.run(
            subject.target, self.traffic, self.settings, release=subject.release, stack=subject.name,
            replicas=subject.replicas, costs=subject.costs, environment=subject.environment, scenario=self.scenario,
            observer=self.observer, progress=progress, say=say, stopper=stopper,
        )  # fmt: skip

    def _from_pods(self, progress: Callable[[generator.Progress], None], say: Callable[[str], None]) -> results.Result:
        # Not at the top: whoever measures from here is to send the first request at once.
        from bench import job, pods

        subject, settings, target = self.subject, self.settings, self.subject.target
        if subject.place.kubectl is None:
            raise AssertionError("pods need a cluster; `subject` has seen to it")
        if target.ca_file:
            raise stacks.InputError(
                where="--ca-file and --pods",
                got="both",
                allowed="one of them",
                fix="use --insecure, or plain HTTP inside",
            )
        limit = settings.max_seconds if math.isfinite(settings.max_seconds) else None
        config = job.JobConfig(
            url=target.url, engine=target.engine, model=target.model, endpoint=target.endpoint, stream=target.stream,
            traffic=self.traffic, objectives=subject.costs.objectives, runs=settings.runs, seconds=settings.seconds,
            release=subject.release, stack=subject.name, replicas=subject.replicas,
            environment={**subject.environment, "client_pods": self.pods}, cost_per_hour_usd=subject.costs.per_hour_usd,
            context_tokens=settings.context_tokens, seed=settings.seed, reconnect=settings.reconnect,
            request_timeout=settings.request_timeout, scenario=self.scenario, workers=settings.workers,
            api_key=target.api_key, headers=target.headers, insecure=target.insecure, max_seconds=limit, pods=self.pods,
            coordinator="later:1", token="0" * 32,
        )  # fmt: skip
        # A batch lasts as long as it lasts; a day is a bound like any other.
        whole = self.scenario.requests or self.scenario.trace
        longest = 86_400.0 if whole and limit is None else settings.runs * (settings.patience * settings.seconds + 600)
        result = pods.run(config, subject.place.kubectl, progress=progress, say=say, longest=longest)
        if not isinstance(self.observer, generator.Prometheus):
            return result
        seen = [self.observer.end(one, time.time() - one.started.timestamp()) for one in result.runs]
        return result.model_copy(update={"runs": tuple(seen)})


def traffic(
    stack: stacks.Stack | None,
    *,
    users: int | None,
    think: float,
    rate: float | None,
    constant: bool,
    prompt: tuple[float | None, float],
    answer: tuple[float | None, float],
    open_loop: bool = False,
) -> stacks.Traffic:
    """The stack's own traffic unless an option says otherwise. `prompt`, `answer`: (mean tokens, cv).

    `open_loop`: a schedule or a trace says when; the rate stands in the traffic only because it must have one.
    """
    if users is not None and rate is not None:
        raise stacks.InputError(
            where="--concurrency and --rate", got="both", allowed="one of them", fix="remove one: closed or open loop"
        )
    own = stack.traffic if stack else None
    prompts = own.prompt_tokens if own and prompt[0] is None else stacks.Tokens(mean=prompt[0] or 128, cv=prompt[1])
    answers = own.output_tokens if own and answer[0] is None else stacks.Tokens(mean=answer[0] or 128, cv=answer[1])
    if own is not None and users is None and rate is None and not open_loop:
        return own.model_copy(update={"prompt_tokens": prompts, "output_tokens": answers})
    # A prompt of another length than the stack's has another beginning too.
    prefix = own.prefix if own is not None and prompt[0] is None else None
    if rate is None and not open_loop:
        return stacks.Traffic(
            arrival="closed", users=users or 1, think_seconds=think, prompt_tokens=prompts, output_tokens=answers,
            prefix=prefix,
        )  # fmt: skip
    arrival: Literal["constant", "poisson"] = "constant" if constant else "poisson"
    return stacks.Traffic(
        arrival=arrival, requests_per_second=rate or 1.0, prompt_tokens=prompts, output_tokens=answers, prefix=prefix
    )


def promises(stack: stacks.Stack | None, given: list[str]) -> stacks.Objectives | None:
    """The stack's promises, with those of `--promise METRIC=LIMIT` instead or besides. Raises InputError."""
    own = dict(stack.objectives.items()) if stack is not None else {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            if name not in stacks.OBJECTIVES:
                raise ValueError
            own[name] = float(value)
            stacks.Objectives.model_validate({name: own[name]})
        except ValueError as error:
            raise stacks.InputError(
                where="--promise", got=text, allowed=f"METRIC=LIMIT, one of {', '.join(stacks.OBJECTIVES)}",
                fix="write for example ttft_p95_seconds=0.5",
            ) from error  # fmt: skip
    return stacks.Objectives.model_validate(own) if own else None


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between. Raises InputError."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise stacks.InputError(
            where=option, got=text or "nothing", allowed="whole numbers from 1 on", fix="write for example 2,4,8"
        )
    return found


def matrix(plan: Plan, path: Path, measuring: Measuring) -> results.Matrix:
    """Measure what is missing of it, with a live view of each cell; Ctrl-C ends it after what is finished."""
    from bench import matrix as cells

    stopper, console = generator.Stopper(), measuring.console

    def cell(batch: int, workers: int) -> results.Result:
        traffic = measuring.traffic.model_copy(update={"arrival": "closed", "users": workers, "think_seconds": 0.0})
        scenario = measuring.scenario.model_copy(update={"requests": batch})
        once = replace(measuring, traffic=traffic, scenario=scenario)
        with reports.live(console) as (progress, _):
            return once.run(progress=progress if console.is_terminal else lambda _: None, stopper=stopper)

    return cells.measure(
        plan, path, cell, stack=measuring.subject.name, release=measuring.subject.release, traffic=measuring.traffic,
        say=lambda text: console.print(text, soft_wrap=True, highlight=False), stopped=lambda: bool(stopper),
    )  # fmt: skip


def header(text: str) -> tuple[str, str]:
    """`NAME: VALUE`. Raises InputError."""
    key, colon, value = text.partition(":")
    if not colon or not key.strip():
        raise stacks.InputError(where="--header", got=text, allowed="NAME: VALUE", fix="put a colon after the name")
    return key.strip(), value.strip()


def written(path: Path | None, text: str) -> None:
    """Write a file of the user's, all of it or nothing; what is no file (/dev/stdout) as it is, and - to standard output.
    Raises InputError where that cannot be."""
    if path is None:
        return
    if path == STDOUT:
        sys.stdout.write(text)
        return
    try:
        if path.exists() and not path.is_file():
            path.write_text(text)
        else:
            # Through a link, which is to stay one.
            stacks.write_whole(path.resolve(), text)
    except OSError as error:
        raise stacks.InputError(
            where=str(path), got=str(error.strerror), allowed="a file that can be written", fix="name another"
        ) from error
