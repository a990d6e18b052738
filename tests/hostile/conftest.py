"""The model store of the services under siege."""

from tests.api.conftest import model_store

__all__ = ["model_store"]
