"""What a converted DICOM study is, and how it is passed between processes; needs no DICOM library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.dicom.return_address import ReturnAddress
from app.sdk.series import SeriesSummary
from app.sdk.types import Flag, Input

__all__ = ["Conversion"]


@dataclass(frozen=True)
class Conversion:
    """Volumes of a study.

    Attributes:
        volumes: a NIfTI file (.nii) for each input.
        series: what each series was taken for.
        flags: flags of the conversion.
        address: where results are sent back to, if it was asked for.
        series_uids: the Series Instance UIDs of each of ``series``; several if each of them is one time point.
        study_uid: Study Instance UID; empty if the files have none.
        patient: identity by kind (patient id, birth date, sex, name), each as a digest; without kinds that are empty.
    """

    volumes: dict[Input, Path] = field(default_factory=dict)
    series: tuple[SeriesSummary, ...] = ()
    flags: tuple[Flag, ...] = ()
    address: ReturnAddress | None = None
    series_uids: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    study_uid: str = field(default="", repr=False)
    patient: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Members as JSON values."""
        return {
            "volumes": {name.value: str(path) for name, path in self.volumes.items()},
            "series": [each.model_dump(mode="json") for each in self.series],
            "flags": [each.model_dump(mode="json") for each in self.flags],
            "address": self.address and self.address.to_json(),
            "series_uids": [list(each) for each in self.series_uids],
            "study_uid": self.study_uid,
            "patient": dict(self.patient),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Conversion:
        """Read what ``to_json`` wrote."""
        return cls(
            volumes={Input(name): Path(path) for name, path in document["volumes"].items()},
            series=tuple(SeriesSummary.model_validate(each) for each in document["series"]),
            flags=tuple(Flag.model_validate(each) for each in document["flags"]),
            address=ReturnAddress.from_json(document["address"]) if document.get("address") else None,
            series_uids=tuple(tuple(each) for each in document["series_uids"]),
            study_uid=document["study_uid"],
            patient=document["patient"],
        )
