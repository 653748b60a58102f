"""The plugin's gRPC face: requests in, operations on a session, answers and errors out."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ._errors import Cancelled, ProviderError, Redactor
from ._grpc import empty_pb2, engine_pb2, engine_pb2_grpc, grpc, plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2
from ._kinds import of
from ._objects import Objects
from ._session import Session, Settings
from ._values import decode, encode_into, has_unknown, plain, show_path
from ._work import Difference, Made, Work, redactor

VERSION = "4.34.2"
"""The release of the official plugin whose SDK this one answers to."""
RELEASE = "kubernetes:helm.sh/v3:Release"
_THREADS = 256  # an await occupies one thread for as long as it lasts


class Failure(Exception):
    """An answer that is an error: a message, and for half-made resources what there is of them."""

    def __init__(self, message: str, made: Made | None = None) -> None:
        super().__init__(message)
        self.made = made


class Provider(provider_pb2_grpc.ResourceProviderServicer):  # type: ignore[misc]
    """One plugin process. Configure makes its session; the rest works on it."""

    def __init__(self, engine_address: str) -> None:
        self._engine: Any = None
        self._session: Session | None = None
        self._active = 0
        self._lock = threading.Lock()
        if engine_address:
            self._connect(engine_address)

    # ---- start and configuration

    def _connect(self, address: str) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._engine = engine_pb2_grpc.EngineStub(grpc.insecure_channel(address, options=options))

    def _log(self, message: str, *, urn: str = "", level: str = "info") -> None:
        if self._engine is None:
            return
        severity = {"warning": engine_pb2.WARNING, "error": engine_pb2.ERROR}.get(level, engine_pb2.INFO)
        request = engine_pb2.LogRequest(severity=severity, message=message, urn=urn, ephemeral=level == "status")
        try:
            self._engine.Log(request, timeout=5)
        except grpc.RpcError:
            return  # an engine that is going away reads no log

    def Handshake(self, request: Any, context: Any) -> Any:
        if self._engine is None and request.engine_address:
            self._connect(request.engine_address)
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True, supports_autonaming_configuration=True)

    def Attach(self, request: Any, context: Any) -> Any:
        self._connect(request.address)
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=VERSION)

    def CheckConfig(self, request: Any, context: Any) -> Any:
        response = provider_pb2.CheckResponse()
        response.inputs.CopyFrom(request.news)
        return response

    def DiffConfig(self, request: Any, context: Any) -> Any:
        old = decode(request.old_inputs) or decode(request.olds)
        new = decode(request.news)
        changed = sorted(key for key in {*old, *new} if plain(old.get(key)) != plain(new.get(key)) and key != "version")
        # Another cluster behind the same stack is only a new cluster where the user says so: addresses and keys change.
        replaces = [key for key in changed if key == "clusterIdentifier" and not has_unknown(new)]
        kind = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(changes=kind, diffs=changed, replaces=replaces)

    def Configure(self, request: Any, context: Any) -> Any:
        inputs = decode(request.args) if request.HasField("args") else {}
        if not inputs:
            inputs = {key.rpartition(":")[2]: value for key, value in request.variables.items()}

        def configure() -> Any:
            self._session = Session(Settings.parse(inputs, dict(os.environ)), self._log)
            return provider_pb2.ConfigureResponse(
                acceptSecrets=True, supportsPreview=True, supports_autonaming_configuration=True
            )

        return self._guard(context, Redactor(), configure)

    # ---- resources

    def Check(self, request: Any, context: Any) -> Any:
        old, new = decode(request.olds), decode(request.news)
        token = _token(request.urn)

        def check() -> Any:
            response = provider_pb2.CheckResponse()
            proposed = None
            if request.HasField("autonaming"):
                if request.autonaming.mode == provider_pb2.CheckRequest.AutonamingOptions.DISABLE:
                    proposed = ""
                else:
                    proposed = request.autonaming.proposed_name or None
            name = request.urn.rpartition("::")[2]
            handler = self._releases() if token == RELEASE else self._objects()
            inputs, failures = handler.check(
                request.urn, token, name, old, new, seed=request.randomSeed, proposed=proposed
            )
            encode_into(response.inputs, inputs)
            for where, reason in failures:
                response.failures.add(property=where, reason=reason)
            return response

        return self._guard(context, redactor(None, old, new), check)

    def Diff(self, request: Any, context: Any) -> Any:
        old, new = decode(request.old_inputs) or decode(request.olds), decode(request.news)

        def diff() -> Any:
            work, handler = self._work(request, new, old)
            return _difference(handler.diff(work, request.id, old))

        return self._guard(context, redactor(None, old, new), diff)

    def Create(self, request: Any, context: Any) -> Any:
        inputs = decode(request.properties)

        def create() -> Any:
            work, handler = self._work(request, inputs)
            made = handler.create(work)
            response = provider_pb2.CreateResponse(id=made.id)
            encode_into(response.properties, made.properties)
            return _or_partial(made, response)

        return self._guard(context, redactor(None, inputs), create)

    def Update(self, request: Any, context: Any) -> Any:
        inputs, old = decode(request.news), decode(request.old_inputs)

        def update() -> Any:
            work, handler = self._work(request, inputs, old)
            made = handler.update(work, request.id)
            response = provider_pb2.UpdateResponse()
            encode_into(response.properties, made.properties)
            return _or_partial(made, response)

        return self._guard(context, redactor(None, inputs, old), update)

    def Read(self, request: Any, context: Any) -> Any:
        inputs, properties = decode(request.inputs), decode(request.properties)

        def read() -> Any:
            work, handler = self._work(request, inputs or (properties and inputs))
            made = handler.read(work, request.id, properties)
            response = provider_pb2.ReadResponse()
            if made is not None:
                response.id = made.id
                encode_into(response.properties, made.properties)
                encode_into(response.inputs, made.inputs or {})
            return response

        return self._guard(context, redactor(None, inputs, properties), read)

    def Delete(self, request: Any, context: Any) -> Any:
        inputs, properties = decode(request.old_inputs), decode(request.properties)

        def delete() -> Any:
            work, handler = self._work(
                request, inputs or {key: properties[key] for key in ("apiVersion", "kind") if key in properties}
            )
            handler.delete(work, request.id, properties)
            return empty_pb2.Empty()

        return self._guard(context, redactor(None, inputs, properties), delete)

    # ---- the rest

    def Invoke(self, request: Any, context: Any) -> Any:
        context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{request.tok} is not served by this stand-in Kubernetes plugin; use resources and helm.v3.Release, "
            "or install the official plugin",
        )

    Call = Invoke

    def Construct(self, request: Any, context: Any) -> Any:
        context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{request.type} is a component of the official Kubernetes plugin and is not supported here; "
            "use helm.sh/v3:Release for charts and plain resources for manifests, or install the official plugin",
        )

    def GetSchema(self, request: Any, context: Any) -> Any:
        context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "this stand-in Kubernetes plugin has no schema; the SDK's own holds"
        )

    def GetMapping(self, request: Any, context: Any) -> Any:
        return provider_pb2.GetMappingResponse()

    def GetMappings(self, request: Any, context: Any) -> Any:
        return provider_pb2.GetMappingsResponse()

    def Cancel(self, request: Any, context: Any) -> Any:
        self.stop()
        return empty_pb2.Empty()

    @property
    def idle(self) -> bool:
        """Whether no operation is under way."""
        return self._active == 0

    def stop(self) -> None:
        """Let every wait end now."""
        if self._session is not None:
            self._session.cancelled.set()

    # ---- the parts

    def _configured(self) -> Session:
        if self._session is None:
            raise ProviderError("the provider is not configured yet")
        return self._session

    def _objects(self) -> Objects:
        return Objects(self._configured())

    def _releases(self) -> Any:
        from ._releases import Releases  # only where a program has charts

        return Releases(self._configured())

    def _work(self, request: Any, inputs: dict[str, Any], old: dict[str, Any] | None = None) -> tuple[Work, Any]:
        token = _token(request.urn)
        handler = self._releases() if token == RELEASE else self._objects()
        kind = of(token, plain(inputs))
        work = Work(
            urn=request.urn,
            kind=kind,
            inputs=inputs,
            preview=getattr(request, "preview", False),
            seconds=getattr(request, "timeout", 0.0),
            ignore=tuple(getattr(request, "ignoreChanges", ())),
            redact=redactor(kind, inputs, old or {}),
        )
        return work, handler

    def _guard(self, context: Any, redact: Redactor, run: Callable[[], Any]) -> Any:
        """Run an operation; whatever goes wrong becomes a status without secrets and without a traceback."""
        with self._lock:
            self._active += 1
        try:
            return run()
        except Failure as failure:
            _abort_partial(context, redact(str(failure)), failure.made)
        except Cancelled as error:
            context.abort(grpc.StatusCode.CANCELLED, redact(str(error)))
        except ProviderError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, redact(str(error)))
        except Exception as error:  # noqa: BLE001  (the last line of defence of a server: an answer instead of a dead call)
            if os.environ.get("TOLLGATE_DEBUG"):
                import traceback

                print(redact(traceback.format_exc()), file=sys.stderr, flush=True)
            where = _place(error)
            context.abort(
                grpc.StatusCode.INTERNAL,
                redact(f"the Kubernetes plugin failed: {type(error).__name__}: {error} ({where})"),
            )
        finally:
            with self._lock:
                self._active -= 1


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"  # noqa: PTH119


def _token(urn: str) -> str:
    """The type of a resource: the last of the `$`-joined chain of parents' types in its URN."""
    return urn.split("::")[2].rpartition("$")[2]


def _or_partial(made: Made, response: Any) -> Any:
    if made.reasons:
        raise Failure("; ".join(made.reasons), made)
    return response


def _abort_partial(context: Any, message: str, made: Made | None) -> None:
    """Fail so that the engine keeps the resource, marked as not initialized: the next update carries on with it."""
    if made is not None:
        detail = provider_pb2.ErrorResourceInitFailed(id=made.id, reasons=list(made.reasons))
        encode_into(detail.properties, made.properties)
        status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=message)
        status.details.add().Pack(detail)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, message)


def _difference(found: Difference) -> Any:
    response = provider_pb2.DiffResponse(hasDetailedDiff=True)
    response.deleteBeforeReplace = found.delete_first
    if not found.changes:
        response.changes = provider_pb2.DiffResponse.DIFF_NONE
        return response
    response.changes = provider_pb2.DiffResponse.DIFF_SOME
    for change in found.changes:
        kind = f"{change.op.upper()}{'_REPLACE' if change.replace else ''}"
        where = show_path(change.path)
        response.detailedDiff[where].kind = provider_pb2.PropertyDiff.Kind.Value(kind)
        response.detailedDiff[where].inputDiff = True
        top = str(change.path[0])
        if top not in response.diffs:
            response.diffs.append(top)
        if change.replace and top not in response.replaces:
            response.replaces.append(top)
    return response


def main(arguments: list[str]) -> int:
    """Serve until the engine ends this process, or goes away itself (kill -9 leaves nobody who would)."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(max_workers=_THREADS), options=options)
    addresses = [argument for argument in arguments if not argument.startswith("-")]
    provider = Provider(addresses[0] if addresses else "")
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    done = threading.Event()

    def interrupted(*_: object) -> None:
        # The engine ends its plugins by SIGINT, and kills them five seconds later. A Ctrl-C that reaches this process while
        # it is at work is not meant for it: the engine says by Cancel when it is time.
        if provider.idle:
            done.set()

    signal.signal(signal.SIGTERM, lambda *_: done.set())
    signal.signal(signal.SIGINT, interrupted)
    parent = os.getppid()
    while not done.wait(0.5) and os.getppid() == parent:
        pass
    provider.stop()
    server.stop(1.0).wait(3.0)
    return 0
