"""Where the bytes of a store lie: a folder, or a bucket of S3 or Google Cloud Storage.

All a store needs is to list names, to read one, and to create one that must not exist yet. The last is what keeps two
writers apart: on a disk by `link(2)`, in a bucket by a conditional write (`If-None-Match: *`).
"""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import stacks

from ._errors import EvidenceBroken

VARIABLE = "TOLLGATE_EVIDENCE"
_ALLOWED = "file://folder, s3://bucket/prefix or gs://bucket/prefix"


class Backend(Protocol):
    """Reading raises EvidenceBroken where it fails: a store that cannot be read is closed, not empty."""

    @property
    def location(self) -> str:
        """For messages."""

    def names(self) -> list[str]:
        """All names, sorted; empty for a store that was never written."""

    def read(self, name: str) -> bytes:
        """The bytes of that name."""

    def create(self, name: str, data: bytes) -> bool:
        """Write all of it or nothing; False when the name exists. Raises TollgateError when it cannot be written."""


class Folder:
    """A folder on a disk; also one shared by several machines, because `link(2)` is atomic on NFS too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def location(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        try:
            if not self.path.exists():
                return []
            return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise EvidenceBroken(f"evidence store {self.path}: cannot be read ({error.strerror})") from None

    def read(self, name: str) -> bytes:
        try:
            if (self.path / name).is_symlink():
                raise EvidenceBroken(f"evidence {name}: is a link; evidence lies in the store itself")
            return (self.path / name).read_bytes()
        except OSError as error:
            raise EvidenceBroken(f"evidence {name}: cannot be read ({error.strerror})") from None

    def create(self, name: str, data: bytes) -> bool:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".writing-", delete=False) as file:
                aside = Path(file.name)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                aside.chmod(0o444)
                (self.path / name).hardlink_to(aside)
            finally:
                aside.unlink()
            _sync(self.path)
        except FileExistsError:
            return False
        except OSError as error:
            raise stacks.TollgateError(f"evidence store {self.path}: cannot be written ({error.strerror})") from None
        return True


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Bucket:
    """A prefix of a bucket, by obstore. Credentials come from the environment, as each cloud's own tools read them."""

    def __init__(self, location: str) -> None:
        parts = urlsplit(location)
        self._location = location
        options = dict(parse_qsl(parts.query))
        settings: dict[str, Any] = {"client_options": {"timeout": "20s", "connect_timeout": "5s"}}
        settings["retry_config"] = {"max_retries": 3}
        # The words of Pulumi's own state URLs, so that one set of settings serves both.
        plain = options.pop("disableSSL", "false") == "true"
        settings["client_options"]["allow_http"] = plain
        if parts.scheme == "s3":
            endpoint = options.pop("endpoint", os.environ.get("AWS_ENDPOINT_URL"))
            settings["virtual_hosted_style_request"] = (
                options.pop("s3ForcePathStyle", "false") != "true" and not endpoint
            )
            if endpoint:
                named = "://" in endpoint
                settings["endpoint"] = endpoint if named else f"{'http' if plain else 'https'}://{endpoint}"
                settings["client_options"]["allow_http"] = settings["endpoint"].startswith("http://")
            if "region" in options:
                settings["region"] = options.pop("region")
            options.pop("awssdk", None)
        if options or not parts.netloc:
            got = next(iter(options), location)
            raise stacks.InputError(where="evidence store", got=got, allowed=_ALLOWED, fix="correct the address")
        self._obstore = _obstore()
        try:
            self._store = self._obstore.store.from_url(f"{parts.scheme}://{parts.netloc}{parts.path}", **settings)
        except self._failures() as error:
            raise stacks.InputError(
                where="evidence store", got=location, allowed=_ALLOWED, fix=_first_line(error)
            ) from None

    @property
    def location(self) -> str:
        return self._location

    def names(self) -> list[str]:
        try:
            pages = self._obstore.list(self._store, chunk_size=1000)
            return sorted(str(item["path"]) for page in pages for item in page)
        except self._failures() as error:
            raise self._unreachable(error) from None

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._obstore.get(self._store, name).bytes())
        except self._failures() as error:
            raise self._unreachable(error) from None

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._obstore.put(self._store, name, data, mode="create")
        except self._obstore.exceptions.AlreadyExistsError:
            return False
        except self._failures() as error:
            raise stacks.TollgateError(
                f"evidence store {self._location}: cannot be written: {_first_line(error)}"
            ) from None
        return True

    def _failures(self) -> tuple[type[BaseException], ...]:
        return (self._obstore.exceptions.BaseError, OSError, ValueError)

    def _unreachable(self, error: BaseException) -> EvidenceBroken:
        return EvidenceBroken(
            f"evidence store {self._location}: cannot be reached, so the gate is closed\n  {_first_line(error)}"
        )


def _obstore() -> Any:
    try:
        found = import_module("obstore")
        import_module("obstore.store")
        import_module("obstore.exceptions")
    except ImportError:
        raise stacks.TollgateError(
            "evidence in a bucket needs the package obstore\n  fix: pip install obstore"
        ) from None
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def backend_of(location: str, root: Path) -> Backend:
    """The backend of that address; a relative `file://` lies below `root`. Raises InputError for any other kind."""
    if location.startswith("file://") and len(location) > len("file://"):
        return Folder(root / location.removeprefix("file://"))
    if location.startswith(("s3://", "gs://")):
        return Bucket(location)
    raise stacks.InputError(
        where=VARIABLE if os.environ.get(VARIABLE) else "tollgate:evidence",
        got=location,
        allowed=_ALLOWED,
        fix="name a folder, for example file://.tollgate/evidence",
    )
