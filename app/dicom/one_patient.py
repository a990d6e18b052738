"""Checks that what is used for one prediction belongs to one patient; needs no DICOM library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.dicom.errors import mismatch

__all__ = ["KINDS", "check_one_patient"]

KINDS = ("patient id", "birth date", "sex", "name")


def check_one_patient(patients: Iterable[Mapping[str, str]], of: str) -> None:
    """Check that identities do not contradict each other; one that is empty or absent contradicts none.

    Args:
        patients: identity by kind, each as a digest.
        of: what has these identities, in the plural, for the message.

    Raises:
        PatientMismatch: there are several patients.
    """
    known = list(patients)
    for kind in KINDS:
        found = {patient.get(kind, "") for patient in known} - {""}
        if len(found) > 1:
            raise mismatch(
                f"The {of} belong to {len(found)} patients: the {kind} differs between {of}. Send one patient."
            )
