"""The return address of a study: what is needed to send results back to the same patient and study, sealed.

Design notes:
- It is the only identity that the service keeps. It is stored encrypted (AES-256-GCM); the key is a setting.
- Without a key nothing of it is kept, and no result is sent back.
- This module needs no DICOM library.
"""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.core.sealing import open_text, seal_text

__all__ = ["InstanceReference", "ReturnAddress", "SealBroken", "accession_digest", "key_of", "open_sealed", "seal"]

_PURPOSE = b"rlvo-return-address-1"
_ACCESSION_PURPOSE = b"rlvo-accession-number-1:"
_KEY_BYTES = 32


class SealBroken(Exception):
    """The sealed bytes are damaged, or were sealed with another key."""


@dataclass(frozen=True)
class InstanceReference:
    """UIDs of one instance of the study.

    Attributes:
        series_uid: Series Instance UID.
        sop_class_uid: SOP Class UID.
        sop_instance_uid: SOP Instance UID.
    """

    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class ReturnAddress:
    """Attributes that a result object repeats; a text that the study lacks is empty.

    Attributes:
        patient_id: Patient ID.
        patient_name: Patient's Name, as a DICOM person name.
        birth_date: Patient's Birth Date, YYYYMMDD.
        sex: Patient's Sex: M, F, O or empty.
        study_instance_uid: Study Instance UID.
        accession_number: Accession Number.
        study_date: Study Date, YYYYMMDD.
        study_time: Study Time, HHMMSS with an optional fraction.
        study_id: Study ID.
        referring_physician: Referring Physician's Name.
        study_description: Study Description.
        frame_of_reference: Frame of Reference UID of the series used as NCCT, else of the first used series.
        instances: the instances of the used series.
    """

    patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""
    sex: str = ""
    study_instance_uid: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_id: str = ""
    referring_physician: str = ""
    study_description: str = ""
    frame_of_reference: str = ""
    instances: tuple[InstanceReference, ...] = ()

    def __repr__(self) -> str:
        """The class name only, so that no log line or error shows a patient."""
        return "ReturnAddress(...)"

    def with_archive(self, other: ReturnAddress) -> ReturnAddress:
        """The address of this archive and another one of the same patient: it names the used instances of both.

        Instances of another study are not named. An object that is placed in the wrong frame would be shown at a wrong
        place, so with two frames of reference the address has none.
        """
        same_study = other.study_instance_uid == self.study_instance_uid
        named = dict.fromkeys((*self.instances, *(other.instances if same_study else ())))
        frame = self.frame_of_reference if other.frame_of_reference == self.frame_of_reference else ""
        return replace(self, instances=tuple(named), frame_of_reference=frame)

    def to_json(self) -> dict[str, Any]:
        """Members as JSON values; the instances grouped by series and class."""
        groups: dict[tuple[str, str], list[str]] = {}
        for each in self.instances:
            groups.setdefault((each.series_uid, each.sop_class_uid), []).append(each.sop_instance_uid)
        return asdict(self) | {"instances": [[*group, uids] for group, uids in groups.items()]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ReturnAddress:
        """Read what ``to_json`` wrote."""
        instances = tuple(
            InstanceReference(series, sop_class, uid)
            for series, sop_class, uids in document["instances"]
            for uid in uids
        )
        return cls(**(document | {"instances": instances}))


def key_of(text: str) -> bytes | None:
    """Read the key of the settings.

    Args:
        text: 32 bytes in base64; empty for no key.

    Returns:
        The key, or None.

    Raises:
        ValueError: the text is something else.
    """
    if not text:
        return None
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error too
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError("RLVO_DICOM_RETURN_KEY must be 32 bytes in base64: openssl rand -base64 32")
    return key


def accession_digest(accession: bytes, key: bytes) -> str:
    """HMAC-SHA256 of an accession number, by which a study is found without a stored accession number."""
    return hmac.new(key, _ACCESSION_PURPOSE + accession, "sha256").hexdigest()


def seal(address: ReturnAddress, key: bytes) -> bytes:
    """Encrypt an address with a key of 32 bytes (`app.core.sealing`)."""
    return seal_text(json.dumps(address.to_json(), ensure_ascii=False), key, _PURPOSE)


def open_sealed(sealed: bytes, key: bytes) -> ReturnAddress:
    """Decrypt what ``seal`` returned.

    Args:
        sealed: nonce, ciphertext and tag.
        key: 32 bytes.

    Returns:
        The address.

    Raises:
        SealBroken: the bytes are damaged, or the key is another one.
    """
    plain = open_text(sealed, key, _PURPOSE)
    if plain is None:
        raise SealBroken("A return address cannot be read: RLVO_DICOM_RETURN_KEY is not the key it was stored with.")
    return ReturnAddress.from_json(json.loads(plain))
