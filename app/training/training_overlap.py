"""Find patients of a cohort that a model version was trained or tested on.

Design notes:
- A version keeps salted hashes of its patients and images in ``extra`` of the manifest, and those of the version whose
  trunk it reuses. Those of the test part are kept apart.
- So one shared patient is found in another cohort, and no patient id is in the manifest.
- A patient id is short, so its hash is slow (scrypt). A list of all possible ids can still be tried against it: treat
  the manifest as pseudonymised data. An image cannot be guessed, and its hash is fast.
- The salt is made of the digest of the data, so that the same run gives the same manifest.
- Ids that differ in spelling only (``cells.spelling``: case, kinds of spaces, full-width digits, zeros) may be of one
  patient. Their hashes are kept too, and a match is a remark and no refusal, because they may be of two patients.
- A version of an earlier release has no hashes. Only the same whole cohort is then found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from app.evaluation.metrics import Labels
from app.registry.manifest import Manifest
from app.training import input_checks, splits
from app.training.cells import spelling
from app.training.cohort import Cohort
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.provenance import CONSTANT, data_digest

EXTRA = "trained_on"
TEST = "test_"  # prefix of the hashes of the test part
SPELLINGS = "spellings"  # hashes of the ids as ``cells.spelling`` writes them
SIZE = 8  # bytes of a hash
COST = 2**10  # of scrypt


@dataclass(frozen=True)
class _Overlap:
    """Studies of a cohort that share a patient id, or an image, with some patients of a version."""

    by_id: frozenset[int] = frozenset()
    by_image: frozenset[int] = frozenset()

    @property
    def rows(self) -> frozenset[int]:
        return self.by_id | self.by_image

    def __or__(self, other: _Overlap) -> _Overlap:
        return _Overlap(self.by_id | other.by_id, self.by_image | other.by_image)

    def text(self, cohort: Cohort) -> str:
        """Counts, and the rows of the table."""
        rows = input_checks.row_ranges([cohort.studies[index].row for index in self.rows])
        return f"same patient id: {len(self.by_id)}, same image: {len(self.by_image)}; rows {rows}"


def hashes(cohort: Cohort, data: Dataset, test: Labels | None = None) -> dict[str, object]:
    """Salted hashes of the patients and the images of a cohort, for ``extra`` of a manifest.

    Args:
        cohort: Studies with their patient ids.
        data: Digests of their images.
        test: Rows of the test part, whose hashes are kept apart; None: there is no test part.
    """
    salt = hashlib.sha256(f"salt {data_digest(cohort, data)}".encode()).hexdigest()[:32]
    tested = set() if test is None else set(test.tolist())
    document: dict[str, object] = {"salt": salt}
    for prefix, rows in (("", set(range(len(data))) - tested), (TEST, tested)):
        names = {cohort.studies[row].patient for row in rows}
        by_name = {name: _of_patient(salt, name) for name in names | {spelling(name) for name in names}}
        patients, spellings = ({by_name[name] for name in own} for own in (names, {spelling(name) for name in names}))
        images = {_of_image(salt, digest) for row in rows for digest in _identifying(data, row)}
        document |= {f"{prefix}patients": sorted(patients), f"{prefix}images": sorted(images)}
        document[f"{prefix}{SPELLINGS}"] = sorted(spellings)
    return document


def check(manifest: Manifest, cohort: Cohort, data: Dataset, *, accept: bool) -> str:
    """Compare a cohort with the patients of a version; returns a note for the report, or "".

    Patients of its test part were not trained on: they are noted and never refused.

    Raises:
        CohortFault: If the version was trained on some of the patients, unless ``accept`` is set.
    """
    name = f"{manifest.name} {manifest.version}"
    blocks: Sequence[dict[str, object]] = manifest.extra.get(EXTRA, [])
    trained, tested = _Overlap(), _Overlap()
    for block in blocks:
        trained, tested = trained | _overlap(block, "", cohort, data), tested | _overlap(block, TEST, cohort, data)
    names = [study.patient for study in cohort.studies]
    same = manifest.training.data_sha256 in (data_digest(cohort, data), splits.digest_of(names, data.labels))
    if not blocks and same:
        trained = _Overlap(frozenset(range(len(data))))
    tested = _Overlap(tested.by_id - trained.rows, tested.by_image - trained.rows)
    notes = []
    if trained.rows:
        # A version of an earlier release does not say which of its patients are its test part.
        separate = all(f"{TEST}patients" in block for block in blocks) and bool(blocks)
        verb = "trained" if separate else "trained or tested"
        found = f"{name} was {verb} on {len(trained.rows)} of these {len(data)} studies ({trained.text(cohort)})"
        if not accept:
            advice = "its results on them say nothing about new patients; leave them out, or --i-know"
            raise CohortFault([f"{found}: {advice}"])
        notes.append(
            f"**{found}. Results on these patients are too good and say nothing about new patients (`--i-know`).**"
        )
    if tested.rows:
        notes.append(
            f"{name} was tested, and not trained, on {len(tested.rows)} of these {len(data)} studies "
            f"({tested.text(cohort)}). Results on them repeat those of its card."
        )
    alike = {row for block in blocks for row in _alike(block, cohort)} - trained.rows - tested.rows
    if alike:
        notes.append(_alike_note(name, cohort, alike))
    if not blocks and not notes:
        return f"{name} keeps no hashes of its training patients: only the same cohort is found."
    return "\n\n".join(notes)


def _overlap(block: Mapping[str, object], prefix: str, cohort: Cohort, data: Dataset) -> _Overlap:
    """Studies whose patient or image is among the hashes with this ``prefix``."""
    salt = str(block["salt"])
    patients, images = (_set(block.get(f"{prefix}{kind}", ())) for kind in ("patients", "images"))
    if not patients and not images:
        return _Overlap()
    known = {name for name in {study.patient for study in cohort.studies} if _of_patient(salt, name) in patients}
    return _Overlap(
        frozenset(index for index, study in enumerate(cohort.studies) if study.patient in known),
        frozenset(
            row for row in range(len(data)) if any(_of_image(salt, d) in images for d in _identifying(data, row))
        ),
    )


def _alike_note(name: str, cohort: Cohort, alike: Collection[int]) -> str:
    rows = input_checks.row_ranges([cohort.studies[index].row for index in alike])
    return (
        f"**The patient ids of {len(alike)} studies differ from those of patients of {name} in case, spaces, accents "
        f"or zeros only (rows {rows}). If they are the same patients, the results on them are too good. Write the ids "
        "as in the training cohort, and the overlap is found.**"
    )


def _alike(block: Mapping[str, object], cohort: Cohort) -> set[int]:
    """Studies whose patient id is that of a patient of the version but for its spelling."""
    salt, parts = str(block["salt"]), ("", TEST)
    exact = frozenset().union(*(_set(block.get(f"{part}patients", ())) for part in parts))
    known = frozenset().union(*(_set(block.get(f"{part}{SPELLINGS}", ())) for part in parts))
    if not known:
        return set()
    by_spelling: dict[str, set[str]] = {}
    for study in cohort.studies:
        by_spelling.setdefault(spelling(study.patient), set()).add(study.patient)
    names = {
        name
        for key, own in by_spelling.items()
        if _of_patient(salt, key) in known
        for name in own
        if _of_patient(salt, name) not in exact
    }
    return {index for index, study in enumerate(cohort.studies) if study.patient in names}


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
