"""A team's own repository of stacks: what `tollgate init` writes, from the stack files that come with Tollgate."""

from ._files import GKE, LOCAL, Source, files, source_of
from ._write import write

__all__ = ["GKE", "LOCAL", "Source", "files", "source_of", "write"]
