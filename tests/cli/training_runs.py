"""A small synthetic cohort and the training commands, for the tests of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from typer.testing import CliRunner, Result

from app.cli.training import commands
from app.phantoms.biology import Preset
from app.training.synthesize import synthesize

TRUNK = Path(__file__).resolve().parents[2] / "model_store" / "rlvo-synthetic" / "2.3.0"
PATIENTS = 90


def rlvo(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def dates() -> np.ndarray:
    return np.array([f"2024-{1 + n // 8:02d}-01" for n in range(PATIENTS)])


def write_cohort(out: Path) -> Path:
    """Write a small cohort of two sites with dates to ``out``."""
    # This preset has enough events for every fold of so few patients.
    synthesize(out, PATIENTS, 31, Preset.XOR)
    table = pd.read_csv(out / "cohort.csv", dtype=str, keep_default_na=False)
    table["site"], table["date"] = np.where(np.arange(PATIENTS) % 3, "east", "west"), dates()
    table.to_csv(out / "cohort.csv", index=False)
    return out
