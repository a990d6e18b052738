"""Encapsulated PDF (PS3.3, A.45.1) of the report of a prediction."""

from __future__ import annotations

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, EncapsulatedPDFStorage, ExplicitVRLittleEndian

from app.dicom.objects.identity import MANUFACTURER, ObjectContext, finish

__all__ = ["document"]


def document(context: ObjectContext, pdf: bytes) -> Dataset:
    """Make the document.

    Args:
        context: the prediction.
        pdf: the report.

    Returns:
        The object.
    """
    equipment = context.equipment("document")
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    made.file_meta.MediaStorageSOPInstanceUID = UID(equipment["sop_instance_uid"])
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = EncapsulatedPDFStorage, UID(equipment["sop_instance_uid"])
    made.SeriesInstanceUID, made.SeriesNumber = UID(equipment["series_instance_uid"]), equipment["series_number"]
    made.Modality, made.InstanceNumber, made.ConversionType = "DOC", 1, "WSD"
    made.Manufacturer, made.ManufacturerModelName = MANUFACTURER, equipment["manufacturer_model_name"]
    made.SoftwareVersions, made.DeviceSerialNumber = context.software(), equipment["device_serial_number"]
    made.InstanceCreationDate = made.ContentDate = made.AcquisitionDateTime = ""
    made.InstanceCreationTime = made.ContentTime = ""
    made.BurnedInAnnotation = "NO"  # the document has no text that identifies the patient
    made.DocumentTitle = "rlvo report - research use only"
    made.ConceptNameCodeSequence = DicomSequence([_title()])
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(pdf)
    made.EncapsulatedDocument = pdf + bytes(len(pdf) % 2)
    return finish(made, context, "document", "rlvo report (PDF)")


def _title() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "18748-4", "LN"
    item.CodeMeaning = "Diagnostic imaging report"
    return item
