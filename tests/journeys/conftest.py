"""One synthetic patient and one running service, for all journeys of a test process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.phantoms.cohort import write_patient
from tests.factory import tiny_version

from .house import House

COARSE = {"ncct": (3.0, 3.0, 4.0), "cta": (3.0, 3.0, 3.0), "perfusion": (4.0, 4.0, 6.0)}


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by upload name: ncct, cta, tmax, cbf and clinical."""
    return write_patient(tmp_path_factory.mktemp("patient"), seed=1, spacing_mm=COARSE)


@pytest.fixture(scope="session")
def study(patient: dict[str, Path]) -> dict[str, Any]:
    """The study that the journeys send: two volumes and the clinical document."""
    return {"ncct": patient["ncct"], "cta": patient["cta"], "clinical": json.loads(patient["clinical"].read_text())}


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_store")
    tiny_version(folder)
    return folder


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[House]:
    """The running service. A test that stops or kills it leaves it running again."""
    house = House(tmp_path_factory.mktemp("house"), model_store, "tiny")
    house.start()
    yield house
    assert house.stop() == 0, house.log()
