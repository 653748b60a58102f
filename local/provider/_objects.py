"""Kubernetes objects: check, diff, create, read, update, delete, by server-side apply."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from ._await import seconds_for, skip_await, until_gone, until_ready
from ._client import APPLY
from ._diff import Change, compare
from ._errors import ApiError, Cancelled, NoSuchKind, NotReady, ProviderError, Unreachable
from ._kinds import Kind, of
from ._live import AUTONAMED, URN_MARK, imported_inputs, outputs, refreshed_inputs
from ._session import Session
from ._values import UNKNOWN, Path, Secret, has_unknown, mark_secrets, plain, secret_paths
from ._work import (
    Difference,
    Made,
    Work,
    conflict_error,
    covers,
    expected,
    hide_volatile,
    identity_of,
    is_ignored,
    mark_of,
    random_suffix,
    shape_failures,
    split_id,
    without,
)

MANAGER = "pulumi-kubernetes"
_APPEAR_SECONDS = 15.0
"""How long a create waits for its namespace or its kind to appear: they may be made by the same update."""


class Objects:
    """The operations, on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # ---- check and diff

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
        """The inputs with what is left out filled in, and the failures as (property, reason)."""
        kind = of(token, new)
        inputs = {key: value for key, value in new.items() if value is not None}
        inputs.setdefault("apiVersion", kind.api_version)
        inputs.setdefault("kind", kind.kind)
        raw = inputs.get("metadata", {})
        if raw is UNKNOWN:
            return inputs, []
        metadata = raw.value if isinstance(raw, Secret) else raw
        if not isinstance(metadata, dict):
            return inputs, [("metadata", f"must be an object, got {type(metadata).__name__}")]
        metadata = {key: value for key, value in metadata.items() if value is not None}
        failures = shape_failures(kind, metadata)
        if "name" not in metadata and not kind.patch and "generateName" not in metadata:
            annotations = metadata.get("annotations") or {}
            if isinstance(annotations, dict):
                metadata["name"] = self._auto_name(name, old, seed, proposed)
                metadata["annotations"] = {**annotations, AUTONAMED: "true"}
        patience = self._session.patience(preview=True)
        if "namespace" not in metadata and self._session.discovery.namespaced(kind, retry_seconds=patience):
            metadata["namespace"] = self._session.default_namespace
        inputs["metadata"] = Secret(metadata) if isinstance(raw, Secret) else metadata
        return inputs, failures

    def _auto_name(self, name: str, old: dict[str, Any], seed: bytes, proposed: str | None) -> str:
        before = plain(old).get("metadata") or {}
        if (
            isinstance(before, dict)
            and (before.get("annotations") or {}).get(AUTONAMED) == "true"
            and before.get("name")
        ):
            return str(before["name"])
        return proposed or f"{name.lower().replace('_', '-')[:240]}-{random_suffix(seed)}"

    def diff(self, work: Work, identity: str, old: dict[str, Any]) -> Difference:
        """What changes from the old inputs to the new ones."""
        self._session.compared.add(work.urn)
        namespace, name = split_id(identity)
        found = compare(work.kind, old, work.inputs, default_namespace=namespace)
        if found and not any(change.replace for change in found) and not work.kind.patch:
            found = self._ask_server(work, found, namespace, name)
        before, after = plain(old).get("metadata") or {}, plain(work.inputs).get("metadata") or {}
        same_name = before.get("name", name) == after.get("name") and before.get("namespace", namespace) == after.get(
            "namespace", namespace
        )
        annotations = after.get("annotations")
        fixed = not (isinstance(annotations, dict) and annotations.get(AUTONAMED) == "true")
        # Also without a reason of ours: a replacement that the user forces with one fixed name has to delete first.
        return Difference(changes=found, delete_first=fixed and same_name)

    def _ask_server(self, work: Work, found: list[Change], namespace: str | None, name: str) -> list[Change]:
        """Let a dry run find immutable fields that the table does not know."""
        if has_unknown(work.inputs):
            return found
        try:
            path = self._path(work.kind, namespace, name, preview=True)
            self._apply(
                work, path, plain(work.inputs), dry_run=True, retry_seconds=self._session.patience(preview=True)
            )
        except ApiError as error:
            if not error.is_immutable():
                return found  # the preview of the update will say it
            fields = {str(cause.get("field", "")) for cause in error.causes}
            hit = [
                Change(path=change.path, op=change.op, replace=any(covers(one, change.path) for one in fields))
                for change in found
            ]
            if any(change.replace for change in hit):
                return hit
            return [Change(path=change.path, op=change.op, replace=change.path[0] != "metadata") for change in found]
        except Cancelled:
            raise
        except ProviderError:
            return found
        return found

    # ---- create, update, read, delete

    def create(self, work: Work, retry: bool = True) -> Made:
        """Make the object and wait until it is ready; in a preview, ask the server what it would make."""
        if work.preview:
            return self._preview(work, None)
        inputs = plain(work.inputs)
        say = self._say(work)
        deadline = time.monotonic() + _APPEAR_SECONDS
        path, generated = self._await_kind(work, deadline), None
        namespace, name = self._place(work.kind, inputs, path)
        if name is None:
            generated = str(inputs["metadata"]["generateName"])
            name = generated + random_suffix(b"")
            inputs = {**inputs, "metadata": {**inputs["metadata"], "name": name}}
        path = self._path(work.kind, namespace, name, preview=False)
        adopted = self._check_absent(work, path, namespace, name)
        while True:
            try:
                live = self._apply(work, path, inputs, say=say)
                break
            except ApiError as error:
                # "namespaces "x" not found": it may be on its way.
                if error.status != 404 or error.kind != "namespaces" or time.monotonic() > deadline:
                    raise
                say(f"waiting for namespace {namespace}")
                self._pause(0.3)
        if adopted:
            self._session.log(
                f"{work.kind.kind} {name} was there with this resource's own mark (a run was cut off): carried on with it",
                urn=work.urn,
                level="warning",
            )
        return self._finish(work, path, live)

    def update(self, work: Work, identity: str) -> Made:
        """Bring the object to the new inputs and wait until it is ready."""
        if work.preview:
            return self._preview(work, identity)
        namespace, name = split_id(identity)
        path = self._path(work.kind, namespace, name, preview=False)
        live = self._apply(work, path, plain(work.inputs), say=self._say(work))
        return self._finish(work, path, live)

    def read(self, work: Work, identity: str, old_properties: dict[str, Any]) -> Made | None:
        """The live object; None where it is gone. `work.inputs` are the old inputs, empty for an import."""
        namespace, name = split_id(identity)
        old = plain(work.inputs)
        if work.kind.kind != "Namespace" and namespace is None:
            namespace = ((old.get("metadata") or {}).get("namespace")) or self._session.default_namespace
        try:
            path = self._path(work.kind, namespace, name, preview=False)
            live = self._session.client.request("GET", path, action=f"read {work.kind.kind} {identity}")
        except NoSuchKind:
            return None
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        if live["metadata"].get("deletionTimestamp") and not old:
            raise ProviderError(f"{work.kind.kind} {identity} is being deleted")
        inputs = refreshed_inputs(old, live) if old else imported_inputs(live)
        paths = self._secret_paths(work.kind, work.inputs)
        return Made(
            id=identity_of(live),
            properties=self._outputs(work, live),
            inputs=mark_secrets(inputs, paths),
        )

    def delete(self, work: Work, identity: str, properties: dict[str, Any]) -> None:
        """Delete the object and wait until it is gone; one that is gone already is fine."""
        namespace, name = split_id(identity)
        try:
            path = self._path(work.kind, namespace, name, preview=False)
            if work.kind.patch:
                self._release(work, path)
                return
            live = self._session.client.request(
                "GET", path, action=f"delete {work.kind.kind} {identity}", on_wait=self._say(work)
            )
            uid = (plain(properties).get("metadata") or {}).get("uid")
            if uid and uid != live["metadata"].get("uid") and self._mark(live) != mark_of(work.urn):
                self._session.log(
                    f"{work.kind.kind} {identity} was replaced by something else since; left alone",
                    urn=work.urn,
                    level="warning",
                )
                return
            options = {
                "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground",
                "preconditions": {"uid": live["metadata"]["uid"]},
            }  # fmt: skip
            self._session.client.request(
                "DELETE", path, body=options, action=f"delete {work.kind.kind} {identity}", on_wait=self._say(work)
            )
        except NoSuchKind:
            return
        except ApiError as error:
            if error.status == 404:
                return
            raise
        except Unreachable as error:
            if self._session.settings.delete_unreachable:
                self._session.log(f"{error}; forgotten because deleteUnreachable is set", urn=work.urn, level="warning")
                return
            raise
        if skip_await(plain(work.inputs) or plain(properties)):
            return
        seconds = seconds_for(plain(work.inputs), work.seconds)
        until_gone(self._session.client, path.rpartition("/")[0], live, seconds=seconds, say=self._say(work))

    # ---- the parts

    def _say(self, work: Work) -> Callable[[str], None]:
        return lambda text: self._session.log(work.redact(text), urn=work.urn, level="status")

    def _pause(self, seconds: float) -> None:
        if self._session.cancelled.wait(seconds):
            raise Cancelled("stopped on request")

    def _path(self, kind: Kind, namespace: str | None, name: str | None, *, preview: bool) -> str:
        patience = self._session.patience(preview=preview)
        self._session.client  # noqa: B018  (says what is wrong with the kubeconfig)
        return self._session.discovery.path(kind, namespace, name, retry_seconds=patience)

    def _await_kind(self, work: Work, deadline: float) -> str:
        while True:
            try:
                return self._path(work.kind, None, None, preview=False)
            except NoSuchKind:
                if time.monotonic() > deadline:
                    raise
                self._say(work)(f"waiting for the API server to serve {work.kind}")
                self._pause(0.3)

    def _place(self, kind: Kind, inputs: dict[str, Any], collection: str) -> tuple[str | None, str | None]:
        metadata = inputs.get("metadata") or {}
        namespace = metadata.get("namespace") or (
            self._session.default_namespace if "/namespaces/" in collection else None
        )
        name = metadata.get("name")
        return namespace, str(name) if name else None

    def _check_absent(self, work: Work, path: str, namespace: str | None, name: str) -> bool:
        """Refuse to take over what something else made; True where an interrupted run of this resource made it."""
        if work.kind.patch:
            return False
        try:
            live = self._session.client.request(
                "GET", path, action=f"create {work.kind.kind} {name}", on_wait=self._say(work)
            )
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        if live["metadata"].get("deletionTimestamp"):
            if work.preview:
                return False
            self._say(work)("waiting for the previous one to be gone")
            seconds = seconds_for(plain(work.inputs), work.seconds)
            until_gone(self._session.client, path.rpartition("/")[0], live, seconds=seconds, say=self._say(work))
            return False
        if self._mark(live) == mark_of(work.urn):
            return True
        if self._annotation(work, "patchForce"):
            return False
        identity = f"{namespace}/{name}" if namespace else name
        token, logical = work.urn.rsplit("::", 2)[-2:] if "::" in work.urn else ("", name)
        raise ProviderError(
            f"{work.kind.kind} {identity} exists already and is not this stack's. Fix: give it another name, or take it over "
            f"with `pulumi import {token.rpartition('$')[2]} {logical} {identity}`, "
            'or set the annotation pulumi.com/patchForce: "true"'
        )

    def _annotation(self, work: Work, name: str) -> bool:
        annotations = (plain(work.inputs).get("metadata") or {}).get("annotations")
        return isinstance(annotations, dict) and str(annotations.get(f"pulumi.com/{name}", "")).lower() == "true"

    def _mark(self, live: dict[str, Any]) -> str | None:
        value = (live["metadata"].get("annotations") or {}).get(URN_MARK)
        return str(value) if value else None

    def _manager(self, work: Work) -> str:
        # Patches need a manager of their own: their fields are given up again without touching anybody else's.
        return f"{MANAGER}-{mark_of(work.urn)[:8]}" if work.kind.patch else MANAGER

    def _apply(
        self,
        work: Work,
        path: str,
        inputs: dict[str, Any],
        *,
        dry_run: bool = False,
        retry_seconds: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        metadata = dict(inputs.get("metadata") or {})
        if not work.kind.patch:
            metadata["annotations"] = {**(metadata.get("annotations") or {}), URN_MARK: mark_of(work.urn)}
        body = {**inputs, "metadata": metadata, "apiVersion": inputs.get("apiVersion", work.kind.api_version)}
        query = {"fieldManager": self._manager(work), "fieldValidation": "Strict"}
        if self._annotation(work, "patchForce") or not self._session.settings.server_side_apply:
            query["force"] = "true"
        if dry_run:
            query["dryRun"] = "All"
        seconds = self._session.patience(preview=False) if retry_seconds is None else retry_seconds
        action = f"{'check' if dry_run else 'apply'} {work.kind.kind} {metadata.get('name')}"
        for _ in range(2):
            try:
                return self._session.client.request(
                    "PATCH",
                    path,
                    query=query,
                    body=body,
                    content_type=APPLY,
                    retry_seconds=seconds,
                    action=action,
                    on_wait=say,
                )
            except ApiError as error:
                fields = [name for _, name in error.conflicts()]
                if not fields:
                    raise
                if not all(is_ignored(name, work.ignore) for name in fields):
                    raise conflict_error(error, action) from None
                # Fields under ignoreChanges belong to whoever holds them (an autoscaler's replicas).
                for name in fields:
                    body = without(body, name)
        raise ProviderError(f"{action}: conflicts remain")

    def _preview(self, work: Work, identity: str | None) -> Made:
        """The outputs to expect: the server's dry run where it can be asked, else the inputs."""
        fallback = expected(work)
        guess = Made(id=identity or "", properties=fallback)
        if has_unknown(work.inputs):
            return guess
        inputs = plain(work.inputs)
        try:
            patience = self._session.patience(preview=True)
            path = self._path(work.kind, None, None, preview=True)
            namespace, name = self._place(work.kind, inputs, path)
            if identity:
                namespace, name = split_id(identity)
            if name is None:
                return guess
            path = self._path(work.kind, namespace, name, preview=True)
            if identity is None:
                self._preview_absent(work, path, namespace, name)
            live = self._apply(work, path, inputs, dry_run=True, retry_seconds=patience)
        except NoSuchKind:
            return guess
        except Unreachable as error:
            self._session.away(work.urn, error)
            return guess
        except ApiError as error:
            if error.status == 404 and error.kind == "namespaces":
                return guess
            raise
        made = self._outputs(work, live)
        if identity is None:
            made = hide_volatile(work.kind, made)
        return Made(id=identity or "", properties=made)

    def _preview_absent(self, work: Work, path: str, namespace: str | None, name: str) -> None:
        # A resource that was compared before is in the state: this preview is of its replacement, and it goes first.
        if work.urn not in self._session.compared:
            self._check_absent(work, path, namespace, name)

    def _finish(self, work: Work, path: str, live: dict[str, Any]) -> Made:
        collection = path.rpartition("/")[0]
        inputs = plain(work.inputs)
        reasons: tuple[str, ...] = ()
        try:
            seconds = seconds_for(inputs, work.seconds)
            live = until_ready(
                self._session.client, work.kind, collection, live, inputs, seconds=seconds, say=self._say(work)
            )
        except (NotReady, Cancelled, Unreachable) as error:
            reasons = (work.redact(f"{work.kind.kind} {live['metadata']['name']}: {error}"),)
            with contextlib.suppress(ProviderError):
                live = self._session.client.request("GET", path, retry_seconds=0)
        return Made(id=identity_of(live), properties=self._outputs(work, live), reasons=reasons)

    def _release(self, work: Work, path: str) -> None:
        body = {
            "apiVersion": work.kind.api_version, "kind": work.kind.kind, "metadata": {"name": path.rpartition("/")[2]},
        }  # fmt: skip
        query = {"fieldManager": self._manager(work), "force": "true"}
        self._session.client.request("GET", path)  # applying would make it anew
        self._session.client.request("PATCH", path, query=query, body=body, content_type=APPLY)

    def _secret_paths(self, kind: Kind, inputs: dict[str, Any]) -> list[Path]:
        paths = list(secret_paths(inputs))
        if (kind.group, kind.kind) == ("", "Secret"):
            paths += [("data",), ("stringData",)]
        return paths

    def _outputs(self, work: Work, live: dict[str, Any]) -> dict[str, Any]:
        properties = outputs(live)
        # The server turns `stringData` into `data`; programs still read back what they gave.
        if "stringData" in work.inputs and (work.kind.group, work.kind.kind) == ("", "Secret"):
            properties["stringData"] = plain(work.inputs["stringData"])
        return dict(mark_secrets(properties, self._secret_paths(work.kind, work.inputs)))
