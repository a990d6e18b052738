"""Table of the peer servers: start function, required library, path of the liveness check.

The start functions import a server's module only when they run, because its library may not be installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """One peer server.

    Attributes:
        start: Serves the model version in a folder on a port of this machine. It does not return.
        library: Module that must be installed.
        liveness: Path of the server's liveness check.
    """

    start: Callable[[int, Path], None]
    library: str
    liveness: str

    def installed(self) -> bool:
        """Return whether the library can be imported."""
        try:
            importlib.import_module(self.library)
        except ImportError:
            return False
        return True


def _start_fastapi(port: int, folder: Path) -> None:
    from bench.servers.fastapi_server import start

    start(port, folder)


def _start_litserve(port: int, folder: Path) -> None:
    from bench.servers.litserve_server import start

    start(port, folder)


def _start_bentoml(port: int, folder: Path) -> None:
    from bench.servers.bentoml_server import start

    start(port, folder)


def _start_ray(port: int, folder: Path) -> None:
    from bench.servers.ray_server import start

    start(port, folder)


PEERS = {
    "fastapi": Peer(_start_fastapi, "fastapi", "/livez"),
    "litserve": Peer(_start_litserve, "litserve", "/health"),
    "bentoml": Peer(_start_bentoml, "bentoml", "/livez"),
    "ray": Peer(_start_ray, "ray.serve", "/-/healthz"),
}
