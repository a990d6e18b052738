"""What each rank of test_crew.py runs under torchrun: DAFT on the xor patients; what it found, in a file of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from app.training import distributed as ranks
from app.training import tasks, trainer
from app.training.trainer import Recipe
from tests.training.conftest import xor_bench
from tests.training.test_trainer import LEARN, VALIDATE, network, score

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    bench = xor_bench()
    from app.network.architecture import Fusion

    with ranks.process_group(torch.device("cpu")):
        model = network(Fusion.DAFT)
        shares = [rows.tolist() for rows in tasks.batches(LEARN[:128], 16, np.random.default_rng(0))]
        task = tasks.EndToEnd(model, bench, LEARN, VALIDATE, turn=False, auxiliary=0.0)
        recipe = Recipe(epochs=10, batch=16, rate=1e-2, average=0.9, patience=10, turn=False)
        trainer.run(task, recipe, 5, checkpoint=folder / "fold.pt")
        content = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        found = {
            "weights": hashlib.sha256(content).hexdigest(),
            "shares": [len(rows) for rows in shares],
            "rows": shares,
            "auc": score(model, bench),
        }
        (folder / f"rank-{distributed.get_rank()}.json").write_text(json.dumps(found))
