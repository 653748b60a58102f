"""Runs one module of a checkout in a process of its own, with compiled code kept between runs: `_child.py FOLDER MODULE ARG…`.

A base commit lies in a new folder each time, so that Python would compile all of it each time; some environments keep no
compiled code at all. Here it is kept by module and found again by the source's contents, wherever that lies: base and head share
it, and what changes is compiled. Nothing of Tollgate is imported: the checkout's own rooms are.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import runpy
import shutil
import sys
import sysconfig
import types
from hashlib import blake2b
from pathlib import Path
from typing import Any

_DIGEST_BYTES = 32
_MOST_ENVIRONMENTS = 4
# What Pulumi's SDK imports for programs of another kind than those that are evaluated: loaded where something is asked of it.
_SELDOM = ("dill", "pulumi.automation")


class _Kept(importlib.machinery.SourceFileLoader):
    """Compiled code from Python's own place beside the source, else from `folder`, one file per module: it does not grow."""

    folder = Path()

    def get_code(self, fullname: str) -> types.CodeType | None:
        """Raises SyntaxError as Python would. That nothing can be kept is no error."""
        path = self.get_filename(fullname)
        if Path(importlib.util.cache_from_source(path)).exists():
            return super().get_code(fullname)
        source = self.get_data(path)
        digest = blake2b(source, digest_size=_DIGEST_BYTES).digest()
        kept = self.folder / fullname
        with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
            data = kept.read_bytes()
            if data[:_DIGEST_BYTES] == digest:
                found = marshal.loads(memoryview(data)[_DIGEST_BYTES:])
                if isinstance(found, types.CodeType):
                    return found
        code = self.source_to_code(source, path)
        if isinstance(code, types.CodeType):
            _keep(kept, digest + marshal.dumps(code))
        return code


class _Later(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of `_SELDOM`: there once they are imported, loaded by the first question for one of their names."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _SELDOM:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader_state, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: Any) -> None:
        def load(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            del module.__getattr__
            module.__spec__.loader_state.exec_module(module)
            return getattr(module, name)

        module.__getattr__ = load


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all: base and head write at the same time."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            own.write_bytes(data)
            own.replace(path)
        finally:
            own.unlink(missing_ok=True)


def install(folder: Path) -> None:
    """From here on in this process. `folder`: of this Python and its packages alone; made here."""
    tag = f"{sys.implementation.cache_tag}-{blake2b(sys.prefix.encode(), digest_size=6).hexdigest()}"
    _Kept.folder = folder / tag
    with contextlib.suppress(OSError):
        _Kept.folder.mkdir(parents=True, exist_ok=True)
        os.utime(_Kept.folder)
        # Environments come and go: of those least recently used nothing is kept.
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-_MOST_ENVIRONMENTS]:
            shutil.rmtree(old, ignore_errors=True)
    library = sysconfig.get_path("stdlib")
    finder = importlib.machinery.FileFinder.path_hook(
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
        (_Kept, importlib.machinery.SOURCE_SUFFIXES),
    )

    def hook(path: str) -> importlib.machinery.FileFinder:
        if path.startswith(library) and "site-packages" not in path:
            raise ImportError("Python keeps its own library's compiled code")
        return finder(path)  # type: ignore[return-value]

    sys.path_hooks.insert(0, hook)
    sys.meta_path.insert(0, _Later())
    sys.path_importer_cache.clear()


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
