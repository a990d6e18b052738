"""The model store of the services under attack."""

from tests.api.conftest import model_store

__all__ = ["model_store"]
