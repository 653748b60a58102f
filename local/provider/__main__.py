"""`python -m local.provider [ENGINE_ADDRESS]`: serve the plugin, print its port, run until the engine goes."""

import sys

from ._server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
