"""What every operation of one configured provider shares: the cluster, the settings, the engine's log, the stop signal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ._client import PREVIEW_RETRY_SECONDS, RETRY_SECONDS, Client
from ._errors import ProviderError, Unreachable
from ._kinds import Discovery
from ._kubeconfig import Target, load
from ._values import plain

Log = Callable[..., None]
"""`log(message, urn=…, level="info"|"warning"|"error"|"status")`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The provider's configuration, as far as it is honoured here; other keys are tolerated."""

    kubeconfig: str | None = field(default=None, repr=False)
    context: str | None = None
    namespace: str | None = None
    server_side_apply: bool = True
    delete_unreachable: bool = False
    release: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, inputs: dict[str, Any], environment: dict[str, str]) -> Settings:
        """From the provider's inputs; raises ProviderError for what this plugin must not ignore silently."""
        values = plain(inputs)
        if values.get("renderYamlToDirectory"):
            raise ProviderError(
                "renderYamlToDirectory is not served by this stand-in plugin; install the official one for it"
            )

        def flag(key: str, variable: str, default: bool) -> bool:
            value = values.get(key, environment.get(variable))
            return default if value is None else str(value).lower() in ("true", "1")

        return cls(
            kubeconfig=_text(values.get("kubeconfig")),
            context=_text(values.get("context")),
            namespace=_text(values.get("namespace")),
            server_side_apply=flag("enableServerSideApply", "PULUMI_K8S_ENABLE_SERVER_SIDE_APPLY", True),
            delete_unreachable=flag("deleteUnreachable", "PULUMI_K8S_DELETE_UNREACHABLE", False),
            release=_mapping(values.get("helmReleaseSettings")),
        )


def _text(value: Any) -> str | None:
    if value in (None, ""):
        return None
    if isinstance(value, str):
        return value
    import json

    return json.dumps(value)


def _mapping(value: Any) -> dict[str, Any]:
    # Nested provider settings arrive as JSON text.
    if isinstance(value, str) and value:
        import json

        value = json.loads(value)
    return value if isinstance(value, dict) else {}


class Session:
    """One configured provider. The kubeconfig is read at first use: a program without resources needs none."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings, self.log = settings, log
        self.cancelled = threading.Event()
        self.compared: set[str] = set()
        """URNs that this process was asked to compare: resources that are in the state."""
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._discovery: Discovery | None = None
        self._away = False

    @property
    def target(self) -> Target:
        return self.client.target

    @property
    def client(self) -> Client:
        """The client; raises ProviderError where there is no usable kubeconfig."""
        with self._lock:
            if self._client is None:
                settings = self.settings
                target = load(settings.kubeconfig, context=settings.context, namespace=settings.namespace)
                self._client = Client(target, cancelled=self.cancelled)
            return self._client

    @property
    def discovery(self) -> Discovery:
        if self._discovery is None:
            try:
                self._discovery = Discovery(self.client)
            except ProviderError:
                return Discovery(None)
        return self._discovery

    @property
    def default_namespace(self) -> str:
        try:
            return self.target.namespace
        except ProviderError:
            return self.settings.namespace or "default"

    def patience(self, *, preview: bool) -> float:
        """How long to try a server that does not answer, in seconds; once a preview found it away, no longer at all."""
        if not preview:
            return RETRY_SECONDS
        return 0.0 if self._away else PREVIEW_RETRY_SECONDS

    def away(self, urn: str, error: Unreachable) -> None:
        """Note, once, that previews go on without the server."""
        if not self._away:
            self._away = True
            self.log(f"preview without the API server's own checks: {error}", urn=urn, level="warning")
