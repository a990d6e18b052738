"""Make the two demo versions and their cards from nothing: a synthetic cohort, its network, its logistic regression.

``python tools/demo_model.py OUT [--patients N] [--phantoms N]``. OUT gets the cohort and the versions
``rlvo-synthetic/2.3.0`` and ``rlvo-synthetic-lr/2.3.0``. An interrupted run continues from its last checkpoint when it
is called again. Weights depend on the kind of CPU and on the number of threads, so on another machine the printed
digests differ. docs/experiments.md says how the shipped versions were made.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

VERSION, COHORT_SEED, SEED = "2.3.0", "2026", "1"
APPEARANCE = ("--variants", "48", "--scanners")
COMPARED = [word for model in ("imaging", "concat", "film", "daft") for word in ("--compare", model)]
"""The networks that see all images, which share the features of the pretrained trunk."""


def commands(out: Path, patients: int, phantoms: int) -> list[list[str]]:
    """The commands that are still to run, as arguments of ``rlvo``."""
    cohort = out / "cohort"
    network, logistic = (out / name / VERSION for name in ("rlvo-synthetic", "rlvo-synthetic-lr"))
    draw = ["synthesize", str(cohort), "--preset", "interaction", "--patients", str(patients), "--seed", COHORT_SEED]
    train = ["train", str(cohort), "--phantoms", str(phantoms), "--seed", SEED]
    steps = {
        cohort: [*draw, *APPEARANCE],
        network: [*train, *COMPARED, "--out", str(network)],
        logistic: [*train, *COMPARED, "--model", "logistic", "--out", str(logistic)],
    }
    return [step for made, step in steps.items() if not made.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=12_000)
    parser.add_argument("--phantoms", type=int, default=10_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for step in commands(arguments.out, arguments.patients, arguments.phantoms):
        print(f"rlvo {' '.join(step)}", flush=True)
        if status := subprocess.run([sys.executable, "-m", "app.cli", *step], check=False).returncode:
            sys.exit(status)
    for file in sorted(arguments.out.glob(f"rlvo-synthetic*/{VERSION}/*")):
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(arguments.out)}")


if __name__ == "__main__":
    main()
