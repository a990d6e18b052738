"""Pool a predictor over hospitals, recalibrate it at one of them, and watch it afterwards, cell by cell.

    python examples/pool_and_recalibrate.py

The patients are simulated. For your own, read a table with the columns ``hospital``, ``outcome`` (0 or 1) and
``probability`` in the order in which the patients came. Figures go to the folder ``pool_and_recalibrate``.
"""

# %% Patients of five hospitals; in the last one the outcome is more frequent than predicted
from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # leave this line out in a notebook

import numpy as np
import pandas as pd
from matplotlib import pyplot

import rlvo.evaluation as ev

OUT = Path("pool_and_recalibrate")
OUT.mkdir(exist_ok=True)
rng = np.random.default_rng(2024)
tables = []
for hospital, shift in {"north": 0.0, "east": -0.2, "south": 0.1, "west": 0.2, "harbour": 0.9}.items():
    log_odds = rng.normal(-1.4, 1.1, 400)
    chance = 1 / (1 + np.exp(-(shift + log_odds)))
    outcome = (rng.random(len(chance)) < chance).astype(int)
    tables.append(pd.DataFrame({"hospital": hospital, "outcome": outcome, "probability": 1 / (1 + np.exp(-log_odds))}))
patients = pd.concat(tables, ignore_index=True)

# %% Each hospital, the mean of all, and what a new hospital may expect (prediction interval)
sites = ev.pool_sites("outcome", "probability", "hospital", data=patients)
print(sites.sites_frame().round(3).to_string(index=False))
print(sites.to_frame().round(3).to_string(index=False))
figure, axes = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
ev.plot_forest(sites, "auc", ax=axes[0])
ev.plot_forest(sites, "observed_expected", ax=axes[1])
figure.savefig(OUT / "sites.png")

# %% Drift: the evidence may be looked at after every patient
own = patients[patients["hospital"] == "harbour"].reset_index(drop=True)
first, later = own[:250].reset_index(drop=True), own[250:].reset_index(drop=True)
print(ev.drift("outcome", "probability", data=first).text)

# %% Recalibrate on the first patients: a closed test chooses among no update, intercept, and intercept and slope
update = ev.recalibrate("outcome", "probability", data=first)
print(f"Update: {update.update}; log-odds = {update.intercept:+.2f} + {update.slope:.2f} x log-odds")

# %% Judge it on later patients, not on those of the fit
later["recalibrated"] = ev.recalibrated(update, "probability", data=later)
for name in ("probability", "recalibrated"):
    print(name)
    print(ev.calibration("outcome", name, data=later).to_frame().round(3).to_string(index=False))
axes = ev.plot_calibration("outcome", "probability", data=later, label="before")
ev.plot_calibration("outcome", "recalibrated", data=later, label="after", ax=axes).figure.savefig(
    OUT / "calibration.png"
)

# %% Watch the recalibrated probabilities
print(ev.drift("outcome", "recalibrated", data=later).text)

# %% How many patients a firm statement needs
prevalence = float(own["outcome"].mean())
print(ev.study_size(prevalence, sites.pooled[0].mean.value).to_frame().to_string(index=False))
