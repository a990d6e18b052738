"""Validate a model version on a cohort of your site, cell by cell, and write figures and a report.

    python examples/validate_at_your_site.py

It makes a small synthetic cohort in the folder ``validate_at_your_site``. For your own cohort, set ``COHORT`` to a
table as for ``rlvo train`` (docs/training.md) and ``VERSION`` to your version. Research use only.
"""

# %% What is validated
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # leave this line out in a notebook

import pandas as pd
from matplotlib import pyplot

import rlvo.evaluation as ev

OUT = Path("validate_at_your_site")
COHORT = OUT / "cohort"
VERSION = "rlvo-synthetic-lr/2.3.0"

if not COHORT.exists():
    made = [sys.executable, "-m", "app.cli", "synthesize", "--patients", "100", "--seed", "2024", str(COHORT)]
    subprocess.run(made, check=True)

# %% How many patients a validation needs, before it starts
print(ev.study_size(prevalence=0.2, auc=0.75, threshold=0.2).to_frame().to_string(index=False))

# %% Load the version and predict every patient
version = ev.load_version(VERSION)
print(version.notice)
predicted = ev.predict_cohort(version, COHORT)
print("\n".join(predicted.attrs["remarks"]))

# %% Say who has no outcome; nothing is dropped silently
unknown = predicted["outcome"].isna()
print(f"{len(predicted)} patients, {int(unknown.sum())} of them without a known outcome")
known = predicted[~unknown]

# %% Discrimination, calibration, overall error, decisions
print(ev.discrimination("outcome", "probability", data=known).to_frame().to_string(index=False))
print(ev.calibration("outcome", "probability", data=known).to_frame().to_string(index=False))
print(ev.brier_score("outcome", "probability", data=known).to_frame().to_string(index=False))
print(ev.decisions("outcome", "probability", version.threshold, data=known).to_frame().to_string(index=False))

# %% Figures
figure, axes = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
ev.plot_roc("outcome", "probability", data=known, label=version.name, ax=axes[0])
ev.plot_calibration("outcome", "probability", data=known, ax=axes[1])
ev.plot_net_benefit("outcome", "probability", data=known, ax=axes[2])
figure.suptitle(version.notice)
figure.savefig(OUT / "figures.png")

# %% Subgroups: clinical variables are in the table of the cohort
clinical = pd.read_csv(COHORT / "cohort.csv")[["patient", "sex", "age"]]
joined = known.merge(clinical, on="patient", validate="one_to_one")
joined["age"] = pd.cut(joined["age"], [0, 65, 80, 120], right=False)
groups = ev.subgroups("outcome", "probability", ["sex", "age"], data=joined)
print(groups.to_frame().round(3).to_string(index=False))
ev.plot_forest(groups).figure.savefig(OUT / "subgroups.png")

# %% The complete report, as `rlvo validate` writes it
found = ev.validate(
    predicted.merge(clinical, on="patient"),
    subgroups=["sex", "age=65,80"],
    conformal="conformal",
    threshold=version.threshold,
    level=version.level,
    rounds=500,
)
print(ev.write_report(found, OUT / "report", title=f"Validation of {version.name} {version.version}"))
