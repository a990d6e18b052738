"""A training run that kills itself (SIGKILL) after its second epoch; see test_loop.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.training.conftest import xor_bench
from tests.training.test_trainer import kill_at_second_epoch

if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_at_second_epoch(xor_bench(), Path(sys.argv[1]))
