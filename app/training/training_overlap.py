"""Find patients of a cohort that a model version was trained on.

Design notes:
- A version keeps salted hashes of its patients and images in ``extra`` of the manifest, and those of the version whose
  trunk it reuses. So one shared patient is found in another cohort, and no patient id is in the manifest.
- A patient id is short, so its hash is slow (scrypt). A list of all possible ids can still be tried against it: treat
  the manifest as pseudonymised data. An image cannot be guessed, and its hash is fast.
- The salt is made of the digest of the data, so that the same run gives the same manifest.
- A version of an earlier release has no hashes. Only the same whole cohort is then found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from app.registry.manifest import Manifest
from app.training import input_checks, splits
from app.training.cohort import Cohort
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.provenance import CONSTANT, data_digest

EXTRA = "trained_on"
SIZE = 8  # bytes of a hash
COST = 2**10  # of scrypt


def hashes(cohort: Cohort, data: Dataset) -> dict[str, object]:
    """Salted hashes of the patients and the images of a cohort, for ``extra`` of a manifest."""
    salt = hashlib.sha256(f"salt {data_digest(cohort, data)}".encode()).hexdigest()[:32]
    patients = {_of_patient(salt, patient) for patient in {study.patient for study in cohort.studies}}
    images = {_of_image(salt, digest) for row in range(len(data)) for digest in _identifying(data, row)}
    return {"salt": salt, "patients": sorted(patients), "images": sorted(images)}


def check(manifest: Manifest, cohort: Cohort, data: Dataset, *, accept: bool) -> str:
    """Compare a cohort with the training patients of a version; returns a note for the report, or "".

    Raises:
        CohortFault: If the version was trained on some of the patients, unless ``accept`` is set.
    """
    name = f"{manifest.name} {manifest.version}"
    blocks: Sequence[dict[str, object]] = manifest.extra.get(EXTRA, [])
    by_id, by_image = set(), set()
    for block in blocks:
        salt, patients, images = str(block["salt"]), _set(block["patients"]), _set(block["images"])
        known = {p for p in {study.patient for study in cohort.studies} if _of_patient(salt, p) in patients}
        by_id |= {index for index, study in enumerate(cohort.studies) if study.patient in known}
        by_image |= {
            row for row in range(len(data)) if any(_of_image(salt, d) in images for d in _identifying(data, row))
        }
    names = [study.patient for study in cohort.studies]
    if manifest.training.data_sha256 in (data_digest(cohort, data), splits.digest_of(names, data.labels)):
        by_id = set(range(len(data)))
    if not by_id | by_image:
        return "" if blocks else f"{name} keeps no hashes of its training patients: only the same cohort is found."
    rows = input_checks.row_ranges([cohort.studies[index].row for index in by_id | by_image])
    found = (
        f"{name} was trained on {len(by_id | by_image)} of these {len(data)} studies (same patient id: {len(by_id)}, "
        f"same image: {len(by_image)}; rows {rows})"
    )
    if not accept:
        raise CohortFault([f"{found}: its results on them say nothing about new patients; leave them out, or --i-know"])
    return f"**{found}. Results on these patients are too good and say nothing about new patients (`--i-know`).**"


def _identifying(data: Dataset, row: int) -> list[str]:
    return [
        digest
        for name, digest in data.digests[row].items()
        if name not in input_checks.NOT_IDENTIFYING and not digest.startswith(CONSTANT)
    ]


def _set(values: object) -> frozenset[str]:
    return frozenset(values) if isinstance(values, list | tuple) else frozenset()


def _of_patient(salt: str, patient: str) -> str:
    return hashlib.scrypt(patient.encode(), salt=bytes.fromhex(salt), n=COST, r=8, p=1, dklen=SIZE).hex()


def _of_image(salt: str, digest: str) -> str:
    return hashlib.blake2b(digest.encode(), key=bytes.fromhex(salt), digest_size=SIZE).hexdigest()
