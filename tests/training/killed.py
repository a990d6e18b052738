"""A training run that kills itself (SIGKILL) after its second epoch; see test_loop.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from tests.training.conftest import bench_of, tiny
from tests.training.test_loop import kill_at_second_epoch

if __name__ == "__main__":
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    scores, brightness = rng.choice([-1.0, 1.0], 400), rng.choice([-1.0, 1.0], 400)
    scores, brightness = scores + rng.normal(0, 0.2, 400), brightness + rng.normal(0, 0.2, 400)
    kill_at_second_epoch(bench_of(tiny(scores, brightness, scores * brightness > 0)), Path(sys.argv[1]))
