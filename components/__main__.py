"""Serve the components over Pulumi's package protocol; started by the engine, or by `pulumi package get-schema`."""

import sys
from pathlib import Path


def main() -> None:
    """Until the engine has what it wanted."""
    # Started as a script, this folder comes first on the path, and its `platform` would be taken for Python's own. What is
    # to be imported is the project around it.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pulumi.provider.experimental import component_provider_host

    from components.package import COMPONENTS

    component_provider_host(components=COMPONENTS, name="tollgate", version="0.1.0")


if __name__ == "__main__":
    main()
