"""One rank of test_process_pool.py under torchrun: trains DAFT on the XOR cohort and writes its results to a file."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from app.network.architecture import Fusion
from app.training import distributed as ranks
from app.training import tasks, trainer
from app.training.errors import CohortFault
from tests.training.tiny import LEARN, RECIPE, fresh_auc, network, xor_context, xor_task

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    context = xor_context()
    with ranks.process_group(torch.device("cpu")):
        model = network(Fusion.DAFT)
        shares = [rows.tolist() for rows in tasks.batches(LEARN[:128], 16, np.random.default_rng(0))]
        small = [len(rows) for rows in tasks.batches(LEARN[:7], 4, np.random.default_rng(0))]
        try:
            trainer.fit(xor_task(network(Fusion.DAFT), context), replace(RECIPE, batch=3), 5)
            refusal = ""
        except CohortFault as error:
            refusal = error.detail
        trainer.fit(xor_task(model, context), RECIPE, 5, checkpoint=folder / "fold.pt")
        content = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        results = {
            "weights": hashlib.sha256(content).hexdigest(),
            "shares": [len(rows) for rows in shares],
            "small": (small, tasks.count_batches(7, 4)),
            "refusal": refusal,
            "rows": shares,
            "auc": fresh_auc(model, context),
        }
        (folder / f"rank-{distributed.get_rank()}.json").write_text(json.dumps(results))
