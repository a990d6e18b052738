"""All errors of the service and the client as one class tree.

The server raises them, one handler renders them as problem details (RFC 9457), and the client raises the same class. A
detail says what to do; it contains no submitted value, no path and no stack trace.

    RlvoError
    ├── BadRequest            400  malformed-multipart, malformed-json, idempotency-key-missing, digest-mismatch
    ├── NotAllowed            401  unauthenticated, 403 insufficient-scope, cross-origin
    ├── NotFound              404  prediction-not-found, model-not-found, not-found
    ├── Gone                  410  erased
    ├── Conflict              409  request-in-progress, alias-conflict, not-finished, figures-not-ready, sealed;
    │                               412, 428 preconditions
    ├── TooLarge              413  payload-too-large, decompressed-too-large
    ├── InvalidStudy          422  nifti-invalid, dicom-invalid, geometry-mismatch, modality-implausible, ...
    ├── Busy                  429  busy, rate-limited, queue-full
    ├── Unavailable           503  model-not-ready, draining, database- and identity-unavailable,
    │                               bucket-missing, archive-unavailable; 507
    ├── InternalError         500  internal-error, quarantined
    └── TransportError             client only: no response, or not from an rlvo service
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FieldError:
    """Fault of one field: its name, and what is expected."""

    __slots__ = ("detail", "field")

    def __init__(self, field: str, detail: str) -> None:
        self.field = field
        self.detail = detail

    def __repr__(self) -> str:
        return f"FieldError({self.field!r}, {self.detail!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldError) and (self.field, self.detail) == (other.field, other.detail)

    def __hash__(self) -> int:
        return hash((self.field, self.detail))


class RlvoError(Exception):
    """Root of the error tree: ``code`` of the problem type, its HTTP ``status``, and its ``title``.

    Args:
        detail: One sentence that says what is wrong and what is expected.
        errors: Faults of single fields.
        retry_after: Seconds after which the same request may succeed.
        prediction_id: Id of the accepted prediction that this error has ended; None if nothing was accepted.
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The service failed"

    _by_code: ClassVar[dict[str, type[RlvoError]]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in cls.__dict__:
            RlvoError._by_code[cls.code] = cls

    def __init__(
        self,
        detail: str = "",
        *,
        errors: Sequence[FieldError] = (),
        retry_after: float | None = None,
        prediction_id: str | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)
        self.retry_after = retry_after
        self.prediction_id = prediction_id

    @classmethod
    def for_code(cls, code: str) -> type[RlvoError]:
        """Return the class of a problem ``code``; the root class for an unknown code."""
        return cls._by_code.get(code, RlvoError)

    def __reduce__(self) -> tuple[object, ...]:
        # Job steps are pickled; the default would lose the keyword arguments.
        return (_rebuild, (type(self), self.detail, self.errors, self.retry_after, self.prediction_id))


def _rebuild(
    cls: type[RlvoError],
    detail: str,
    errors: tuple[FieldError, ...],
    retry_after: float | None,
    prediction_id: str | None,
) -> RlvoError:
    return cls(detail, errors=errors, retry_after=retry_after, prediction_id=prediction_id)


# 400 ---------------------------------------------------------------------------------------------------------------


class BadRequest(RlvoError):
    code, status, title = "bad-request", 400, "The request is malformed"


class MalformedMultipart(BadRequest):
    code, title = "malformed-multipart", "The multipart body is malformed"


class MalformedJson(BadRequest):
    code, title = "malformed-json", "The JSON document cannot be read"


class IdempotencyKeyMissing(BadRequest):
    code, title = "idempotency-key-missing", "An Idempotency-Key header is required"


class DigestMismatch(BadRequest):
    code, title = "digest-mismatch", "The body does not match its digest"


# 401, 403 ----------------------------------------------------------------------------------------------------------


class NotAllowed(RlvoError):
    code, status, title = "forbidden", 403, "This caller is not allowed to do that"


class Unauthenticated(NotAllowed):
    code, status, title = "unauthenticated", 401, "An API key is required"


class InsufficientScope(NotAllowed):
    code, title = "insufficient-scope", "The API key lacks the scope for this call"


class CrossOrigin(NotAllowed):
    code, title = "cross-origin", "The request comes from another web site"


# 404, 405, 410 -----------------------------------------------------------------------------------------------------


class NotFound(RlvoError):
    code, status, title = "not-found", 404, "There is no such resource"


class PredictionNotFound(NotFound):
    code, title = "prediction-not-found", "There is no such prediction"


class ModelNotFound(NotFound):
    code, title = "model-not-found", "There is no such model version"


class MethodNotAllowed(RlvoError):
    code, status, title = "method-not-allowed", 405, "The method is not allowed at this address"


class Gone(RlvoError):
    code, status, title = "gone", 410, "The resource was deleted"


class Erased(Gone):
    code, title = "erased", "This prediction was erased"


# 408, 409, 412, 428 ------------------------------------------------------------------------------------------------


class UploadTimeout(RlvoError):
    code, status, title = "upload-timeout", 408, "The request body did not arrive in time"


class HeadersTooLate(RlvoError):
    code, status, title = "header-timeout", 408, "The headers of the request did not arrive in time"


class Conflict(RlvoError):
    code, status, title = "conflict", 409, "The request conflicts with the current state"


class RequestInProgress(Conflict):
    code, title = "request-in-progress", "A request with this Idempotency-Key is still being received"


class AliasConflict(Conflict):
    code, title = "alias-conflict", "Another operator moved the alias"


class NotFinished(Conflict):
    code, title = "not-finished", "The prediction has not finished"


class Sealed(Conflict):
    code, title = "sealed", "A silent trial seals the answer"


class FiguresNotReady(NotFinished):
    code, title = "figures-not-ready", "The figures and the report are not drawn yet"


class EtagMismatch(Conflict):
    code, status, title = "etag-mismatch", 412, "The record has changed since it was read"


class PreconditionRequired(Conflict):
    code, status, title = "precondition-required", 428, "An If-Match header is required"


def sealed_by(trial: str) -> Sealed:
    """Error of a request for what a silent trial seals."""
    return Sealed(f"The silent trial {trial} seals the answer. Its key holders open it with `rlvo trial report`")


# 411, 413, 415, 417, 431 -------------------------------------------------------------------------------------------


class TooLarge(RlvoError):
    code, status, title = "payload-too-large", 413, "The body is larger than this service accepts"


class DecompressedTooLarge(TooLarge):
    code, title = "decompressed-too-large", "The decompressed volume is larger than this service accepts"


class HeadersTooLarge(RlvoError):
    code, status, title = "headers-too-large", 431, "The headers of the request are larger than this service accepts"


class UnsupportedMedia(RlvoError):
    code, status, title = "unsupported-media", 415, "The media type is not supported"


class ExpectationFailed(RlvoError):
    code, status, title = "expectation-failed", 417, "The Expect header is not supported"


# 422 ---------------------------------------------------------------------------------------------------------------


class InvalidStudy(RlvoError):
    code, status, title = "invalid-study", 422, "The study is not valid"


class InvalidRequest(InvalidStudy):
    code, title = "invalid-request", "A parameter of the request is out of its range"


class InvalidVolume(InvalidStudy):
    code, title = "nifti-invalid", "The file is not a volume that the service can read"


class InvalidDicom(InvalidStudy):
    code, title = "dicom-invalid", "The DICOM study cannot be used"


class PatientMismatch(InvalidStudy):
    code, title = "patient-mismatch", "The DICOM files belong to several patients or studies"


class GeometryMismatch(InvalidStudy):
    code, title = "geometry-mismatch", "The volumes do not lie on matching grids"


class ImplausibleModality(InvalidStudy):
    code, title = "modality-implausible", "The volume is not of the modality of its field"


class InvalidClinical(InvalidStudy):
    code, title = "clinical-invalid", "The clinical document is not valid"


class MissingInput(InvalidStudy):
    code, title = "missing-required-input", "An input that the model requires is missing"


class IdempotencyKeyReused(InvalidStudy):
    code, title = "idempotency-key-reused", "The Idempotency-Key was used with another body"


# 429 ---------------------------------------------------------------------------------------------------------------


class Busy(RlvoError):
    code, status, title = "busy", 429, "The service is busy"


class RateLimited(Busy):
    code, title = "rate-limited", "This caller sends too many requests"


class QueueFull(Busy):
    code, title = "queue-full", "The queue is full"


# 5xx ---------------------------------------------------------------------------------------------------------------


class InternalError(RlvoError):
    code, status, title = "internal-error", 500, "The service failed"


class Quarantined(InternalError):
    code, title = "quarantined", "Processing was stopped after repeated failures"


class Unavailable(RlvoError):
    code, status, title = "unavailable", 503, "The service is not available"


class ModelNotReady(Unavailable):
    code, title = "model-not-ready", "The model version is not ready to serve"


class DatabaseUnavailable(Unavailable):
    code, title = "database-unavailable", "The database cannot be reached"


class IdentityUnavailable(Unavailable):
    code, title = "identity-unavailable", "The identity provider cannot be reached"


class ArchiveUnavailable(Unavailable):
    code, title = "archive-unavailable", "The DICOM archive does not answer"


class Draining(Unavailable):
    code, title = "draining", "The service is shutting down"


class StorageFull(Unavailable):
    code, status, title = "storage-full", 507, "The storage is full"


class StorageUnavailable(Unavailable):
    """Raised by the service only. It has the code of its base class, so clients of earlier releases know it."""


class BucketMissing(StorageUnavailable):
    code, title = "bucket-missing", "The bucket of the stored files does not exist"


# client side -------------------------------------------------------------------------------------------------------


class TransportError(RlvoError):
    """Raised by the client only: no response, or a response that is not from an rlvo service."""

    code, status, title = "transport-error", 0, "The service did not answer"
