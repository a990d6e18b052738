from __future__ import annotations

import pytest
import torch

from app.training.tasks import TrainingContext
from tests.training.tiny import xor_context


@pytest.fixture(scope="session")
def xor() -> TrainingContext:
    return xor_context()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
