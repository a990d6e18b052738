"""Does the paper's ordering come out? Images alone, the record alone, and both, on five cohorts of the `paper` preset.

    python -m bench._ordering [SEED ...]

Not part of `make bench`: it measures patients, not seconds. A seed takes some minutes; what is done is kept in
`ordering.jsonl` in the folder given by `--folder`, and a seed that stands there is not run again; a killed one goes on.

Notable choices:
- 599 patients a seed, drawn straight onto a grid of 8 mm (20 x 24 x 20) instead of 4: an eighth of the work, so that
  five seeds fit into minutes. Clots are short beside 8 mm: the imaging rows would be a little better at 4.
- Everything else is `rlvo train`'s own: frozen 80/20 split, four folds, the recipe, the same rows for every model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from app.imaging.model_grid import Grid
from app.inference import defaults
from app.phantoms.biology import Preset
from app.training import experiment, splits
from app.training.dataset import phantoms
from app.training.results_table import ORACLE, ResultRow
from app.training.trainer import Recipe

PATIENTS = 599
GRID = Grid(shape=(20, 24, 20), affine=((8, 0, 0, -76), (0, 8, 0, -110), (0, 0, 8, -72), (0, 0, 0, 1)))
NETWORKS = ("all imaging", "imaging + clinical, concatenation", "imaging + clinical, DAFT")
SHOWN = ("clinical, logistic regression", "clinical, gradient boosting", experiment.LOGISTIC, *NETWORKS, ORACLE)


def one(seed: int, folder: Path) -> dict[str, list[float]]:
    """By model: AUC over folds, its SD, AUC on the test part."""
    defaults.GRID = GRID  # type: ignore[misc]
    torch.set_num_threads(1)
    data = phantoms(PATIENTS, seed, Preset.PAPER, GRID, defaults.CHANNELS)
    split = splits.split(data.labels, data.groups, data.sites, seed)
    plan = experiment.ExperimentPlan(
        "ordering", "0.0.0", "phantoms", synthetic=True, seed=seed, recipe=Recipe(), networks=NETWORKS
    )
    found = experiment.compare(plan, data, split, torch.device("cpu"), lambda _: None, folder=folder / f"seed-{seed}")
    rows: dict[str, ResultRow] = {row.name: row for row in found.rows}
    return {name: [*rows[name].folds, rows[name].test.value] for name in SHOWN}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", nargs="*", type=int, default=[7, 17, 27, 37, 47])
    parser.add_argument("--folder", type=Path, default=Path("ordering"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "ordering.jsonl"
    kept = {} if not path.exists() else {int(k): v for line in path.open() for k, v in json.loads(line).items()}
    for seed in given.seeds:
        if seed not in kept:
            start = time.process_time()
            kept[seed] = one(seed, given.folder)
            with path.open("a") as file:
                file.write(json.dumps({seed: kept[seed]}) + "\n")
            print(f"seed {seed}: {time.process_time() - start:.0f} CPU-s")
    chosen = np.array([[kept[seed][name] for name in SHOWN] for seed in given.seeds])
    print("| model | AUC over folds, mean of seeds ± SD | AUC on test, mean of seeds ± SD |\n|---|---|---|")
    for column, name in enumerate(SHOWN):
        folds, _, test = chosen[:, column].T
        print(f"| {name} | {folds.mean():.3f} ± {folds.std():.3f} | {test.mean():.3f} ± {test.std():.3f} |")


if __name__ == "__main__":
    main()
