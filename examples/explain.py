"""Read the explanation of one prediction, step by step. Run it as a program, or cell by cell in an editor (``# %%``).

python examples/explain.py PREDICTION-ID --volume cta.nii.gz
"""

# %% Connect and read the prediction
from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from rlvo import Client

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prediction")
parser.add_argument("--volume", type=Path, required=True, help="the CTA that was sent")
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--api-key")
arguments = parser.parse_args()

client = Client(arguments.url, api_key=arguments.api_key)
prediction = client.get(arguments.prediction)
attribution = prediction.attribution
if attribution is None or prediction.probability is None:
    raise SystemExit("This prediction has no explanation: it was sent with explain=false or has not finished.")

# %% The contributions add up to the log-odds of the probability
log_odds = math.log(prediction.probability / (1 - prediction.probability))
parts = sum(part.contribution for part in [*attribution.clinical, *attribution.imaging])
print(f"base {attribution.base:+.3f}, contributions {parts:+.3f}, log-odds {log_odds:+.3f}")
assert abs(attribution.base + parts - log_odds) < 1e-4

# %% Which clinical variables raise or lower the probability?
for reason in sorted(attribution.clinical, key=lambda reason: -abs(reason.contribution))[:8]:
    print(f"{reason.variable:45} {reason.contribution:+.3f}")

# %% Which images, and which regions of them?
for modality in attribution.imaging:
    regions = [region for region in attribution.regions if region.modality == modality.modality]
    regions.sort(key=lambda region: -abs(region.contribution))
    strongest = ", ".join(f"{region.region} {region.contribution:+.3f}" for region in regions[:3])
    print(f"{modality.modality:10} {modality.contribution:+.3f}: {strongest}")

# %% Where is the voxel of the highest attribution, in the patient's own grid?
with tempfile.TemporaryDirectory() as folder:
    path = client.map(prediction.id, "attribution-cta", to=folder)
    image = nibabel.load(path)
    values = np.asarray(image.dataobj)
volume = nibabel.load(arguments.volume)
assert image.shape == volume.shape
peak = np.unravel_index(np.argmax(np.abs(values)), values.shape)
position = image.affine @ np.array([*peak, 1.0])
print(f"peak at voxel {tuple(int(index) for index in peak)}, {np.round(position[:3], 1).tolist()} mm (RAS+)")
client.close()
