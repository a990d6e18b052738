"""OpenAPI entries of the routes of received studies."""

from __future__ import annotations

from app.api.openapi_responses import Entry, entry, json_body
from app.sdk import errors
from app.sdk.studies import StudyRecord

_ERRORS = (errors.NotFound, errors.InvalidRequest)
_OK: Entry = {"description": "The study"}

listing = entry(errors.InvalidRequest)
read = entry(*_ERRORS, ok={200: _OK})
complete = entry(
    *_ERRORS,
    errors.Conflict,
    ok={202: {"description": "The study is assembled now"}},
    description="Says that nothing more will arrive, or with `instances`, how many instances there are. Without this "
    "call, a study is complete when no new instance has arrived for `RLVO_DICOM_QUIET` seconds.",
)
pull = entry(
    errors.InvalidRequest,
    ok={202: {"description": "The study is being fetched; `pull` shows the state"}},
    description="The archive is one of `rlvo dicom destinations`. What arrives is assembled when it is complete.",
)
pull_by_accession = entry(
    *_ERRORS,
    errors.UnsupportedMedia,
    errors.ArchiveUnavailable,
    ok={202: {"description": "The studies that are being fetched"}},
    description="Answers when the archive has named the studies, and fetches them then.",
)
roles = entry(
    *_ERRORS,
    errors.MalformedJson,
    ok={200: _OK},
    openapi_extra=json_body("StudyRoles"),
    description="The body names series by their UID and replaces all roles that were stated before. A study that is "
    "assembled already is assembled again; if its inputs change, the prediction gets a revision.",
)
clinical = entry(
    errors.InvalidRequest,
    errors.MalformedJson,
    errors.InvalidClinical,
    ok={200: _OK},
    openapi_extra=json_body("ClinicalRecord"),
    description="Before the images or after them. A record that arrives after the prediction makes a revision.",
)
record = entry(
    errors.InvalidRequest,
    errors.MalformedJson,
    errors.InvalidClinical,
    errors.Conflict,
    ok={
        200: {"description": "The record is joined to the study with this accession number"},
        202: {"description": "No study with this number has arrived; the record waits for it", "model": StudyRecord},
    },
    openapi_extra=json_body("ClinicalRecord"),
    description="Needs `RLVO_DICOM_RETURN_KEY`, with which the service recognises accession numbers. A waiting record "
    "is joined to the first study that arrives with this number and has no record, and is deleted after "
    "`RLVO_DICOM_KEEP_HOURS`. If several studies have this number, the answer is a conflict: use the UID then.",
)
withdraw = entry(
    *_ERRORS,
    ok={204: {"description": "The waiting record is deleted"}},
    description="A record that was joined to a study is erased with the study. A key needs the scope `erase`.",
)
cancel = entry(
    *_ERRORS,
    ok={200: _OK},
    description="Cancels the predictions of the study that have not finished. No further one is made, whatever "
    "arrives, until the study is completed by a call.",
)
erase = entry(
    *_ERRORS,
    errors.Unavailable,
    errors.BucketMissing,
    errors.StorageFull,
    ok={204: {"description": "The study, its instances and its predictions are erased"}},
    description="A key needs the scope `erase`.",
)
