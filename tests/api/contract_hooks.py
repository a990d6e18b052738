"""Test data for schemathesis (see schemathesis.toml): file fields sometimes receive a valid volume."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies

from tests.api.conftest import volume

schemathesis.openapi.format(
    "binary", strategies.sampled_from([volume(), volume(compressed=False)]) | strategies.binary(max_size=400)
)
