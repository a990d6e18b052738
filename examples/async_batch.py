"""Predict many studies concurrently and print one CSV line for each.

Each study is a folder with ``ncct.nii.gz``, ``cta.nii.gz`` and ``clinical.json``:

    python examples/async_batch.py patients/*/ > results.csv

The idempotency key is made of the content of the files. If the program is interrupted, run it again: the service
returns the predictions that it already has and computes no study twice.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import hashlib
import json
import sys
from pathlib import Path

from rlvo import AsyncClient, RlvoError

FILES = ("ncct.nii.gz", "cta.nii.gz", "clinical.json")


def idempotency_key(study: Path) -> str:
    """Return a key that changes when a file of the study changes."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(hashlib.sha256((study / name).read_bytes()).digest())
    return f"batch-{digest.hexdigest()[:32]}"


async def predict(client: AsyncClient, study: Path, limit: asyncio.Semaphore) -> tuple[str, ...]:
    """Return the name of the study, its probability, the warnings that withhold its decision, and its error."""
    async with limit:
        try:
            prediction = await client.predict(
                ncct=study / "ncct.nii.gz",
                cta=study / "cta.nii.gz",
                clinical=json.loads((study / "clinical.json").read_text()),
                explain=False,
                idempotency_key=idempotency_key(study),
            )
        except RlvoError as error:
            return study.name, "", "", "", error.detail
    return study.name, f"{prediction.probability:.4f}", str(prediction.headline), " ".join(prediction.withheld), ""


async def run(url: str, api_key: str | None, studies: list[Path], concurrency: int) -> None:
    """Send the studies, at most ``concurrency`` at once, and print the results in the order of the arguments."""
    table = csv.writer(sys.stdout)
    table.writerow(("study", "probability", "headline", "withheld", "error"))
    async with AsyncClient(url, api_key=api_key) as client:
        limit = asyncio.Semaphore(concurrency)
        for row in await asyncio.gather(*(predict(client, study, limit) for study in studies)):
            table.writerow(row)


def main() -> None:
    """Read the arguments and run the batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--concurrency", type=int, default=4)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.url, arguments.api_key, arguments.studies, arguments.concurrency))


if __name__ == "__main__":
    main()
