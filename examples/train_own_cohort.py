"""Train a model version on your own cohort and add it to the model store.

    python examples/train_own_cohort.py cohort.csv --out runs/mine/1.0.0 --store model_store

The table has one row for each study: paths of the volumes, clinical columns, and the components of the outcome; see
docs/training.md. It runs the commands ``rlvo train`` and ``rlvo models add``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def rlvo(*arguments: str, **environment: str) -> None:
    """Run one command of rlvo; exit with its status where it fails."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    status = subprocess.run(command, env=os.environ | environment, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Train, and add the version to the store, whose checks it must pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new version: NAME/VERSION")
    parser.add_argument("--store", type=Path, required=True, help="model store of the service")
    parser.add_argument(
        "--option", action="append", default=[], help="further option of `rlvo train`, such as --option=--jobs=2"
    )
    arguments = parser.parse_args()

    rlvo("train", str(arguments.cohort), "--out", str(arguments.out), *arguments.option)
    print((arguments.out / "card.md").read_text(encoding="utf-8").split("\n\n")[0])
    rlvo("models", "add", str(arguments.out), RLVO_MODEL_STORE=str(arguments.store))
    name, version = arguments.out.parts[-2:]
    rlvo("models", "verify", f"{name}@{version}", RLVO_MODEL_STORE=str(arguments.store))
    print(f"To serve it, run `rlvo models promote {name}@{version}` while the service runs.")


if __name__ == "__main__":
    main()
