"""AUC of images, clinical record and both on five cohorts of the preset `paper`, compared with the order in the paper.

    python -m bench._ordering [SEED ...] [--mm 8]

Design notes:
- `make bench` does not run it, because it measures models, not speed. A seed at 4 mm takes 25 minutes of CPU time.
- Results are stored in `ordering.jsonl`, in a folder for each grid in `--folder`. A stored seed is not run again, and
  a stopped one continues.
- A seed has 599 patients, on the grid of 4 mm of `rlvo train`, or with `--mm 8` on one of 8 mm: an eighth of the work.
- Everything else is that of `rlvo train`: fixed 80/20 split, four folds, the recipe, the same rows for every model.
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
from app.training import experiment, results_table, splits
from app.training.dataset import phantoms
from app.training.progress import ProgressReporter
from app.training.results_table import ORACLE
from app.training.trainer import Recipe

PATIENTS = 599
COARSE = Grid(shape=(20, 24, 20), affine=((8, 0, 0, -76), (0, 8, 0, -110), (0, 0, 8, -72), (0, 0, 0, 1)))
NETWORKS = ("all imaging", "imaging + clinical, concatenation", "imaging + clinical, DAFT")
MODELS = ("clinical, logistic regression", "clinical, gradient boosting", experiment.LOGISTIC, *NETWORKS, ORACLE)


def evaluate(seed: int, folder: Path, grid: Grid) -> dict[str, list[float]]:
    """Return by model: AUC over folds, its SD, AUC on the test part."""
    defaults.GRID = grid  # type: ignore[misc]
    torch.set_num_threads(1)
    data = phantoms(PATIENTS, seed, Preset.PAPER, grid, defaults.CHANNELS)
    split = splits.split(data.labels, data.groups, data.sites, seed)
    config = experiment.ExperimentConfig(seed=seed, recipe=Recipe(), networks=NETWORKS)
    cpu, checkpoints = torch.device("cpu"), folder / f"seed-{seed}"
    fitted = experiment.fit_models(config, data, split, cpu, ProgressReporter(), folder=checkpoints)
    rows = {row.name: row for row in results_table.table(fitted.scores, data.labels, split, experiment.DAFT)}
    return {name: [*rows[name].folds, rows[name].test.value] for name in MODELS}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", nargs="*", type=int, default=[7, 17, 27, 37, 47])
    parser.add_argument("--folder", type=Path, default=Path("ordering"))
    parser.add_argument("--mm", type=int, choices=(4, 8), default=4, help="edge of a voxel of the grid")
    arguments = parser.parse_args()
    grid = defaults.GRID if arguments.mm == 4 else COARSE
    folder = arguments.folder / f"{arguments.mm}mm"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ordering.jsonl"
    results = {} if not path.exists() else {int(k): v for line in path.open() for k, v in json.loads(line).items()}
    for seed in arguments.seeds:
        if seed not in results:
            start = time.process_time()
            results[seed] = evaluate(seed, folder, grid)
            with path.open("a") as file:
                file.write(json.dumps({seed: results[seed]}) + "\n")
            print(f"seed {seed}: {time.process_time() - start:.0f} CPU-s")
    values = np.array([[results[seed][name] for name in MODELS] for seed in arguments.seeds])
    print("| model | AUC over folds, mean of seeds ± SD | AUC on test, mean of seeds ± SD |\n|---|---|---|")
    for column, name in enumerate(MODELS):
        folds, _, test = values[:, column].T
        print(f"| {name} | {folds.mean():.3f} ± {folds.std(ddof=1):.3f} | {test.mean():.3f} ± {test.std(ddof=1):.3f} |")


if __name__ == "__main__":
    main()
