"""What all result objects of a prediction share: UIDs, times, patient, study and equipment.

Design notes:
- UIDs are made of the prediction's id (RFC 9562, name-based UUIDs, under 2.25: PS3.5, B.2). Sent twice, an object is
  the same instance.
- The libraries stamp the present time and random UIDs. ``finish`` replaces them, so that a repetition has equal bytes.
- Dates and times are those of the end of the prediction, in the time zone of the service.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BytesIO
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, CTImageStorage

from app.dicom.return_address import InstanceReference, ReturnAddress
from app.sdk.types import Prediction

__all__ = ["MANUFACTURER", "ObjectContext", "finish", "serialise"]

MANUFACTURER = "rlvo"
SERIES_NUMBERS = {"report": 9001, "segmentation": 9002, "attribution": 9003, "key-images": 9004, "document": 9005}
_NAMESPACE = uuid.UUID("6e1b2a54-2c3c-5d0a-9d1e-6f6b1a1d7c21")
_RANDOM_ROOTS = ("1.2.826.0.1.3680043.10.511.3.",)  # highdicom's root of new UIDs
_PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_DATES = ("InstanceCreationDate", "SeriesDate", "ContentDate", "DateOfSecondaryCapture")
_TIMES = tuple(name.replace("Date", "Time") for name in _DATES)
_DATE_TIMES = ("ObservationDateTime", "ContributionDateTime")


@dataclass(frozen=True)
class ObjectContext:
    """Prediction and return address that an object is made of.

    Attributes:
        prediction: a prediction that succeeded.
        address: patient and study.
    """

    prediction: Prediction
    address: ReturnAddress

    @cached_property
    def made(self) -> datetime:
        """End of the prediction, in the time zone of the service."""
        return (self.prediction.finished or self.prediction.created).astimezone()

    @property
    def frame_of_reference(self) -> str:
        """Frame of Reference UID of the study's images."""
        return self.address.frame_of_reference

    @property
    def device_uid(self) -> str:
        """UID of the model version, as the observer of the report."""
        return _uid(self.prediction.model.digest)

    def uid(self, *parts: object) -> str:
        """A UID of this prediction, the same at each call with the same parts."""
        return _uid(self.prediction.id, *parts)

    def software(self) -> str:
        """Name and version of the model, as Software Versions (at most 64 characters)."""
        return f"{self.prediction.model.name}@{self.prediction.model.version}"[:64]

    def equipment(self, kind: str, number: int = 1) -> dict[str, Any]:
        """Arguments of a constructor of highdicom: series, instance and equipment of an object."""
        return {
            "series_instance_uid": self.uid(kind),
            "series_number": SERIES_NUMBERS[kind],
            "sop_instance_uid": self.uid(kind, number),
            "instance_number": number,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.prediction.model.name[:64],
            "software_versions": self.software(),
            "device_serial_number": self.prediction.model.digest.removeprefix("sha256:")[:64],
        }

    def source(self, reference: InstanceReference | None = None) -> Dataset:
        """A stand-in of an image of the study, with what the constructors read of it.

        Args:
            reference: the image; the first one of the study by default.
        """
        address = self.address
        reference = reference or next(iter(address.instances), None) or self._absent()
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = UID(reference.sop_class_uid), UID(reference.sop_instance_uid)
        image.SeriesInstanceUID, image.StudyInstanceUID = UID(reference.series_uid), UID(address.study_instance_uid)
        for name in _PATIENT_AND_STUDY:
            setattr(image, name, None)  # checked by the library, which refuses some that hospitals use; set by `finish`
        if self.frame_of_reference:
            image.FrameOfReferenceUID, image.PositionReferenceIndicator = UID(self.frame_of_reference), ""
        image.Rows = image.Columns = 1
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [1, 1], 1
        image.SamplesPerPixel, image.ImageType, image.Modality = 1, ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
        return image

    def patient_and_study(self) -> Dataset:
        """Attributes of the Patient and General Study modules."""
        address, part = self.address, Dataset()
        part.PatientID, part.PatientName = address.patient_id, address.patient_name
        part.PatientBirthDate, part.PatientSex = address.birth_date, address.sex
        part.StudyInstanceUID, part.StudyID = UID(address.study_instance_uid), address.study_id
        part.StudyDate, part.StudyTime = address.study_date, address.study_time
        part.AccessionNumber, part.ReferringPhysicianName = address.accession_number, address.referring_physician
        if address.study_description:
            part.StudyDescription = address.study_description
        return part

    def evidence(self, more: Iterable[Dataset] = ()) -> list[Dataset]:
        """Items of Current Requested Procedure Evidence Sequence: all instances of the address, and further ones."""
        series: dict[str, list[tuple[str, str]]] = {}
        for each in self.address.instances:
            series.setdefault(each.series_uid, []).append((each.sop_class_uid, each.sop_instance_uid))
        for one in more:
            series.setdefault(one.SeriesInstanceUID, []).append((one.SOPClassUID, one.SOPInstanceUID))
        study = Dataset()
        study.StudyInstanceUID = UID(self.address.study_instance_uid)
        study.ReferencedSeriesSequence = DicomSequence([_series_item(uid, pairs) for uid, pairs in series.items()])
        return [study]

    def reference_study(self, dataset: Dataset) -> None:
        """Reference all instances of the study (PS3.3, C.12.2), not the stand-in that a constructor was given."""
        items = []
        for item in self.evidence()[0].ReferencedSeriesSequence:
            series = Dataset()
            series.SeriesInstanceUID = item.SeriesInstanceUID
            series.ReferencedInstanceSequence = item.ReferencedSOPSequence
            items.append(series)
        dataset.ReferencedSeriesSequence = items
        for group in (*dataset.PerFrameFunctionalGroupsSequence, *dataset.SharedFunctionalGroupsSequence):
            if "DerivationImageSequence" in group:
                del group.DerivationImageSequence

    def _absent(self) -> InstanceReference:
        return InstanceReference(self.uid("absent"), CTImageStorage, self.uid("absent", 1))


def finish(dataset: Dataset, context: ObjectContext, kind: str, description: str) -> Dataset:
    """Set patient, study and description of an object, and replace what differs between two calls.

    Args:
        dataset: the object; it is changed.
        context: its prediction.
        kind: a key of ``SERIES_NUMBERS``.
        description: Series Description.

    Returns:
        The object.
    """
    dataset.update(context.patient_and_study())
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SeriesDescription = f"{description} - research use only"[:64]
    dataset.SeriesDate, dataset.SeriesTime = f"{context.made:%Y%m%d}", f"{context.made:%H%M%S}"
    if "Rows" in dataset:
        dataset.BodyPartExamined = "HEAD"
    renamed: dict[str, str] = {}

    def fix(_: Dataset, element: DataElement) -> None:
        if element.keyword in _DATES:
            element.value = f"{context.made:%Y%m%d}"
        elif element.keyword in _TIMES:
            element.value = f"{context.made:%H%M%S}"
        elif element.keyword in _DATE_TIMES:
            element.value = f"{context.made:%Y%m%d%H%M%S}"
        elif element.VR == "UI" and str(element.value).startswith(_RANDOM_ROOTS):
            known = renamed.setdefault(str(element.value), context.uid(kind, dataset.InstanceNumber, len(renamed), "x"))
            element.value = UID(known)

    dataset.walk(fix)
    return dataset


def serialise(dataset: Dataset) -> bytes:
    """The file of an object, with preamble and file meta information."""
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _uid(*parts: object) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(str(part) for part in parts)).int}"


def _series_item(uid: str, pairs: Iterable[tuple[str, str]]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = UID(uid)
    items = []
    for sop_class, instance in pairs:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(sop_class), UID(instance)
        items.append(item)
    series.ReferencedSOPSequence = DicomSequence(items)
    return series
