"""What the attacks share: a project, a canary that must show up nowhere, and results with hostile words in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tollgate.conftest import called  # noqa: F401 - the fixture is shared

# Planted where a secret would be; looked for in all that comes out.
CANARY = "canary-3f9b6c1e7d"
HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture
def stack_file(project: Path) -> Path:
    """The file of local-dev in a project of the test's own."""
    return project / "stacks" / "Pulumi.local-dev.yaml"
