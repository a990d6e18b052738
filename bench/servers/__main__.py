"""Start one peer server: ``python -m bench.servers PEER PORT FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.servers.catalog import PEERS


def main(peer: str, port: str, folder: str) -> None:
    if peer not in PEERS:
        sys.exit(f"unknown peer: {peer}; known: {', '.join(PEERS)}")
    PEERS[peer].start(int(port), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
