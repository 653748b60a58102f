"""`kubernetes:helm.sh/v3:Release`: a chart installed by Helm as one resource."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ._await import pods_of
from ._client import APPLY
from ._diff import Change, changes
from ._errors import ApiError, Cancelled, NoSuchKind, ProviderError, Unreachable
from ._helm import Helm, Revision, checksum, revisions
from ._kinds import Kind, of
from ._live import URN_MARK
from ._ready import judge_for, trouble
from ._session import Session
from ._values import UNKNOWN, Asset, has_unknown, mark_secrets, plain, secret_paths
from ._work import Difference, Made, Work, mark_of, random_suffix, split_id

DEFAULT_SECONDS = 300
"""The official plugin's default time-out of a Release."""
_DRY_RUNS = 300  # objects of one chart that a preview lets the API server check
_NOT_INPUTS = ("compat", "resourceNames", "manifest", "status")
_FLAGS = {
    "cleanupOnFail": "--cleanup-on-fail",
    "dependencyUpdate": "--dependency-update",
    "devel": "--devel",
    "disableOpenapiValidation": "--disable-openapi-validation",
    "disableWebhooks": "--no-hooks",
    "renderSubchartNotes": "--render-subchart-notes",
    "resetValues": "--reset-values",
    "reuseValues": "--reuse-values",
    "skipCrds": "--skip-crds",
    "takeOwnership": "--take-ownership",
    "verify": "--verify",
}
_WATCHED = (
    Kind(group="apps", version="v1", kind="Deployment"),
    Kind(group="apps", version="v1", kind="StatefulSet"),
    Kind(group="apps", version="v1", kind="DaemonSet"),
    Kind(group="batch", version="v1", kind="Job"),
)


class Releases:
    """The operations on releases, on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._helm = Helm(session)

    def check(
        self,
        urn: str,
        token: str,
        name: str,
        old: dict[str, Any],
        new: dict[str, Any],
        *,
        seed: bytes,
        proposed: str | None,
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Defaults, a name, and the checksum of a chart that lies on this machine."""
        inputs = {key: value for key, value in new.items() if value is not None}
        failures = []
        if not inputs.get("chart"):
            failures.append(
                ("chart", "a Release needs a chart: a path, a name with repositoryOpts.repo, or an oci:// address")
            )
        if "name" not in inputs:
            before = plain(old).get("name")
            inputs["name"] = before or proposed or f"{name.lower()[:44]}-{random_suffix(seed)}"
        inputs.setdefault("namespace", self._session.default_namespace)
        inputs.setdefault("timeout", int(self._session.settings.release.get("timeout") or DEFAULT_SECONDS))
        chart, options = plain(inputs.get("chart")), plain(inputs.get("repositoryOpts") or {})
        if isinstance(chart, str) and not (isinstance(options, dict) and options.get("repo")):
            digest = checksum(chart)
            if digest:
                inputs["checksum"] = digest
            elif chart.startswith((".", "/", "~")):
                failures.append(("chart", f"{chart}: there is no chart here (no Chart.yaml)"))
        return inputs, failures

    def diff(self, work: Work, identity: str, old: dict[str, Any]) -> Difference:
        """Inputs against inputs; another name or namespace is another release."""
        self._session.compared.add(work.urn)
        before, after = (
            {key: value for key, value in plain(inputs).items() if key not in _NOT_INPUTS}
            for inputs in (old, work.inputs)
        )
        found = [
            Change(path=change.path, op=change.op, replace=change.path[0] in ("name", "namespace"))
            for change in changes(before, after)
        ]
        same_name = all(before.get(key) == after.get(key) for key in ("name", "namespace"))
        return Difference(changes=found, delete_first=same_name)

    def create(self, work: Work) -> Made:
        """Install; carries on with a release that an interrupted run of this very resource left."""
        if work.preview:
            return self._preview(work, None)
        inputs = plain(work.inputs)
        stored = self._stored(inputs["namespace"], inputs["name"])
        if stored and stored[-1].status != "uninstalled":
            self._own(work, stored[-1], inputs)
        return self._install(work, inputs, stored)

    def update(self, work: Work, identity: str) -> Made:
        """Upgrade; a revision that hangs is resolved first."""
        if work.preview:
            return self._preview(work, identity)
        inputs = plain(work.inputs)
        return self._install(work, inputs, self._stored(inputs["namespace"], inputs["name"]))

    def read(self, work: Work, identity: str, properties: dict[str, Any]) -> Made | None:
        """The release as Helm has it; its user-supplied values become the input values, so that drift shows."""
        namespace, name = split_id(identity)
        namespace = namespace or self._session.default_namespace
        stored = [one for one in self._stored(namespace, name) if one.status != "uninstalled"]
        if not stored:
            return None
        current, old = stored[-1], work.inputs
        metadata = (current.document.get("chart") or {}).get("metadata") or {}
        config = current.document.get("config") or {}
        if old:
            inputs = dict(plain(old))
            if not inputs.get("valueYamlFiles") and (inputs.get("values") or config):
                inputs["values"] = config
            if not changes(plain(old).get("values") or {}, inputs.get("values") or {}):
                inputs = dict(plain(old))
        else:
            inputs = {
                "name": name,
                "namespace": namespace,
                "chart": metadata.get("name"),
                "version": metadata.get("version"),
            }
            inputs |= {"values": config, "timeout": DEFAULT_SECONDS}
        inputs = dict(mark_secrets(inputs, secret_paths(old)))
        return Made(id=f"{namespace}/{name}", properties=self._outputs(inputs, current), inputs=inputs)

    def delete(self, work: Work, identity: str, properties: dict[str, Any]) -> None:
        """Uninstall and wait until its objects are gone."""
        namespace, name = split_id(identity)
        namespace = namespace or self._session.default_namespace
        try:
            stored = self._stored(namespace, name)
        except Unreachable as error:
            if not self._session.settings.delete_unreachable:
                raise
            self._session.log(f"{error}; forgotten because deleteUnreachable is set", urn=work.urn, level="warning")
            return
        if not stored or stored[-1].status == "uninstalled":
            return
        inputs = plain(work.inputs) or plain(properties)
        self._uninstall(work, namespace, name, self._seconds(work, inputs), wait=not inputs.get("skipAwait"))

    # ---- the parts

    def _stored(self, namespace: str, name: str) -> list[Revision]:
        return revisions(self._session.client, namespace, name, URN_MARK)

    def _say(self, work: Work, text: str) -> None:
        self._session.log(work.redact(text), urn=work.urn, level="status")

    def _seconds(self, work: Work, inputs: dict[str, Any]) -> float:
        return float(work.seconds or inputs.get("timeout") or DEFAULT_SECONDS)

    def _own(self, work: Work, last: Revision, inputs: dict[str, Any]) -> None:
        identity = f"{inputs['namespace']}/{inputs['name']}"
        if last.mark != mark_of(work.urn):
            logical = work.urn.rpartition("::")[2]
            raise ProviderError(
                f"release {identity} exists already ({last.status}) and is not this stack's. Fix: give it another name, or take "
                f"it over with `pulumi import kubernetes:helm.sh/v3:Release {logical} {identity}`"
            )
        self._session.log(
            f"release {identity} was there with this resource's own mark (a run was cut off): carried on with it",
            urn=work.urn,
            level="warning",
        )

    def _recover(self, work: Work, inputs: dict[str, Any], stored: list[Revision]) -> None:
        """Resolve a revision that an interrupted Helm left pending: back to the last good one, or away where there is none."""
        last = stored[-1]
        namespace, name = inputs["namespace"], inputs["name"]
        good = [one.number for one in stored[:-1] if one.status in ("deployed", "superseded")]
        if good:
            note = f"release {name}: revision {last.number} was left {last.status}; rolled back to revision {good[-1]}"
            with self._helm.workspace() as folder:
                self._helm.run(["rollback", name, str(good[-1]), "-n", namespace], folder)
        else:
            note = f"release {name}: revision {last.number} was left {last.status} with nothing before it; uninstalled"
            self._uninstall(work, namespace, name, self._seconds(work, inputs), wait=True)
        self._session.log(note, urn=work.urn, level="warning")

    def _uninstall(self, work: Work, namespace: str, name: str, seconds: float, *, wait: bool) -> None:
        flags = ["--wait", "--cascade", "foreground", "--timeout", f"{seconds:.0f}s"] if wait else []
        with self._helm.workspace() as folder:
            try:
                self._helm.run(["uninstall", name, "-n", namespace, *flags], folder, seconds=seconds + 30)
            except ProviderError as error:
                if "not found" not in str(error):
                    raise

    def _install(self, work: Work, inputs: dict[str, Any], stored: list[Revision]) -> Made:
        if stored and stored[-1].pending:
            self._recover(work, inputs, stored)
        namespace, name, seconds = inputs["namespace"], inputs["name"], self._seconds(work, inputs)
        identity, seen = f"{namespace}/{name}", _Seen()

        def tick() -> None:
            with contextlib.suppress(ProviderError):
                text = self._progress(namespace, name)
                if text and text != seen.text:
                    seen.text = text
                    self._say(work, text)

        with self._helm.workspace() as folder:
            arguments = self._arguments(inputs, folder, work, seconds)
            try:
                self._helm.run(arguments, folder, tick=tick, seconds=seconds + 60)
            except ProviderError as error:
                if isinstance(error, Unreachable):
                    raise
                text = f"release {identity}: {error}" + (f"\nlast seen: {seen.text}" if seen.text else "")
                left = self._stored_or_nothing(namespace, name)
                if left and not stored and not isinstance(error, Cancelled):
                    # It is there and failed: the engine keeps it, and the next update upgrades it.
                    return Made(
                        id=identity, properties=self._outputs(work.inputs, left[-1]), reasons=(work.redact(text),)
                    )
                raise type(error)(text) if isinstance(error, Cancelled) else ProviderError(text) from None
        left = self._stored(namespace, name)
        if not left:
            raise ProviderError(f"release {identity}: Helm reported success and stored no revision")
        return Made(id=identity, properties=self._outputs(work.inputs, left[-1]))

    def _stored_or_nothing(self, namespace: str, name: str) -> list[Revision]:
        with contextlib.suppress(ProviderError):
            return self._stored(namespace, name)
        return []

    def _arguments(
        self, inputs: dict[str, Any], folder: Path, work: Work, seconds: float, *, dry: bool = False
    ) -> list[str]:
        arguments = ["upgrade", "--install", inputs["name"]]
        arguments += self._helm.chart(folder, inputs["chart"], inputs.get("repositoryOpts") or {})
        arguments += ["-n", inputs["namespace"], "--labels", f"{URN_MARK}={mark_of(work.urn)}"]
        arguments += [flag for key, flag in _FLAGS.items() if inputs.get(key)]
        for key, flag in (("version", "--version"), ("description", "--description"), ("keyring", "--keyring")):
            if inputs.get(key):
                arguments += [flag, str(inputs[key])]
        if inputs.get("maxHistory") is not None:
            arguments += ["--history-max", str(inputs["maxHistory"])]
        if inputs.get("postrender"):
            arguments += ["--post-renderer", str(inputs["postrender"])]
        if inputs.get("createNamespace"):
            arguments.append("--create-namespace")
        if inputs.get("forceUpdate"):
            arguments.append("--force" if self._helm.major < 4 else "--force-replace")
        arguments += self._helm.values(folder, inputs.get("valueYamlFiles") or [], inputs.get("values") or {})
        if dry:
            return [*arguments, "--dry-run=server"]
        arguments += ["--timeout", f"{seconds:.0f}s"]
        if not inputs.get("skipAwait"):
            arguments += ["--wait", "--wait-for-jobs"]
        if inputs.get("atomic"):
            arguments.append("--atomic" if self._helm.major < 4 else "--rollback-on-failure")
        return arguments

    def _progress(self, namespace: str, name: str) -> str:
        """What the workloads of the release still wait for."""
        client, parts = self._session.client, []
        for kind in _WATCHED:
            path = self._session.discovery.path(kind, namespace, None, retry_seconds=0)
            query = {"labelSelector": "app.kubernetes.io/managed-by=Helm"}
            judge = judge_for(kind)
            for live in client.request("GET", path, query=query, retry_seconds=0).get("items") or []:
                if (live["metadata"].get("annotations") or {}).get(
                    "meta.helm.sh/release-name"
                ) != name or judge is None:
                    continue
                state = judge(live)
                if state.ready:
                    continue
                waiting = [
                    f"pod {pod['metadata']['name']}: {why}"
                    for pod in pods_of(client, kind, live)
                    if (why := trouble(pod))
                ]
                parts.append(
                    f"{kind.kind} {live['metadata']['name']}: {state.message}"
                    + (f"; waiting: {'; '.join(waiting[:3])}" if waiting else "")
                )
        return " | ".join(parts)

    # ---- preview

    def _preview(self, work: Work, identity: str | None) -> Made:
        expected = {**work.inputs, "status": UNKNOWN, "resourceNames": UNKNOWN}
        made = Made(id=identity or "", properties=expected)
        if has_unknown(work.inputs):
            return made
        inputs = plain(work.inputs)
        with self._helm.workspace() as folder:
            manifest = self._render(work, inputs, folder)
        objects = _documents(manifest)
        if not inputs.get("disableOpenapiValidation"):
            self._dry_run(work, inputs["namespace"], objects)
        expected["resourceNames"] = resource_names(objects, inputs["namespace"])
        return made

    def _render(self, work: Work, inputs: dict[str, Any], folder: Path) -> str:
        """The manifest, rendered with what the cluster knows where it can be asked."""
        try:
            self._session.client.request("GET", "/version", retry_seconds=self._session.patience(preview=True))
            stored = self._stored(inputs["namespace"], inputs["name"])
            pending = bool(stored) and stored[-1].pending
        except Unreachable as error:
            self._session.away(work.urn, error)
            pending = True
        if not pending:
            try:
                output = self._helm.run(self._arguments(inputs, folder, work, 0, dry=True), folder)
                return output.partition("MANIFEST:")[2].partition("\nNOTES:")[0]
            except ProviderError as error:
                # Kinds that the chart itself or the same update defines cannot be looked up yet.
                if "ensure CRDs are installed" not in str(error) and "no matches for kind" not in str(error):
                    raise
        arguments = [
            "template",
            inputs["name"],
            *self._helm.chart(folder, inputs["chart"], inputs.get("repositoryOpts") or {}),
        ]
        arguments += [
            "-n",
            inputs["namespace"],
            *(["--version", str(inputs["version"])] if inputs.get("version") else []),
        ]
        arguments += ["--dependency-update"] if inputs.get("dependencyUpdate") else []
        arguments += self._helm.values(folder, inputs.get("valueYamlFiles") or [], inputs.get("values") or {})
        return self._helm.run(arguments, folder, offline=True)

    def _dry_run(self, work: Work, namespace: str, objects: list[dict[str, Any]]) -> None:
        """Let the API server check each object of the chart; what cannot be asked yet is passed over."""
        refused = []
        for item in objects[:_DRY_RUNS]:
            metadata = item.get("metadata") or {}
            try:
                kind = of("kubernetes:core/v1:Any", item)
                where = metadata.get("namespace") or namespace
                path = self._session.discovery.path(kind, where, metadata.get("name"), retry_seconds=0)
                query = {"fieldManager": "helm", "dryRun": "All", "force": "true", "fieldValidation": "Warn"}
                self._session.client.request("PATCH", path, query=query, body=item, content_type=APPLY, retry_seconds=0)
            except (NoSuchKind, Unreachable):
                continue
            except ApiError as error:
                if error.status in (400, 422):
                    refused.append(f"{item.get('kind')} {metadata.get('name')}: {error.detail}")
            except Cancelled:
                raise
            except ProviderError:
                return
        if refused:
            chart = plain(work.inputs)["chart"]
            raise ProviderError(f"the API server refuses what chart {chart} renders:\n  " + "\n  ".join(refused[:10]))

    # ---- outputs

    def _outputs(self, inputs: dict[str, Any], revision: Revision) -> dict[str, Any]:
        document = revision.document
        metadata = (document.get("chart") or {}).get("metadata") or {}
        namespace = document.get("namespace")
        return {
            **{key: value for key, value in inputs.items() if value is not None and not isinstance(value, Asset)},
            "resourceNames": resource_names(_documents(document.get("manifest") or ""), str(namespace)),
            "status": {
                "name": document.get("name"),
                "namespace": namespace,
                "revision": revision.number,
                "status": revision.status,
                "chart": metadata.get("name"),
                "version": metadata.get("version"),
                "appVersion": metadata.get("appVersion"),
            },
        }


class _Seen:
    text = ""


def _documents(manifest: str) -> list[dict[str, Any]]:
    import yaml

    try:
        found = list(yaml.load_all(manifest, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError:
        return []
    return [item for item in found if isinstance(item, dict) and item.get("kind") and item.get("metadata")]


def resource_names(objects: list[dict[str, Any]], namespace: str) -> dict[str, list[str]]:
    """`{"Deployment.apps/apps/v1": ["namespace/name"]}`, as the official plugin names a release's resources."""
    names: dict[str, list[str]] = {}
    for item in objects:
        kind = of("kubernetes:core/v1:Any", item)
        head = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
        scoped = namespace_of(item, kind, namespace)
        names.setdefault(f"{head}/{kind.api_version}", []).append(scoped + str(item["metadata"].get("name")))
    return {key: sorted(value) for key, value in sorted(names.items())}


def namespace_of(item: dict[str, Any], kind: Kind, namespace: str) -> str:
    """`namespace/` before a name, or nothing for kinds without one."""
    from ._kinds import Discovery

    scoped = Discovery(None).namespaced(kind, retry_seconds=0)
    return "" if scoped is False else f"{item['metadata'].get('namespace') or namespace}/"
