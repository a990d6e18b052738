"""Everything that can go wrong, as one tree.

The server raises these, one handler renders them as RFC 9457 problem+json, and the client raises the same class
again. A detail is something a PACS administrator can act on; it never repeats a submitted value, a path or a trace.

    RlvoError
    ├── BadRequest            400  malformed-multipart, malformed-json, idempotency-key-missing, digest-mismatch
    ├── NotAllowed            401  unauthenticated, 403 insufficient-scope
    ├── NotFound              404  prediction-not-found, model-not-found, not-found
    ├── Gone                  410  erased
    ├── Conflict              409  request-in-progress, alias-conflict, not-finished; 412, 428 preconditions
    ├── TooLarge              413  payload-too-large, decompressed-too-large
    ├── InvalidStudy          422  nifti-invalid, geometry-mismatch, modality-implausible, clinical-invalid, ...
    ├── Busy                  429  rate-limited, queue-full
    ├── Unavailable           503  model-not-ready, draining, database- and identity-unavailable; 507
    ├── InternalError         500  internal-error, quarantined
    └── TransportError             client side only: no answer, or none that is ours
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FieldError:
    """One field's fault inside an error: where it is, and what would be right."""

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
    """The root. ``code`` names the problem type, ``status`` its HTTP status, ``title`` the code in words.

    :param detail: one sentence that says what is wrong and what would be right
    :param errors: the single fields at fault, when there are several or they can be named
    :param retry_after: seconds after which the same request may succeed
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something failed on our side"

    _by_code: ClassVar[dict[str, type[RlvoError]]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in cls.__dict__:
            RlvoError._by_code[cls.code] = cls

    def __init__(
        self, detail: str = "", *, errors: Sequence[FieldError] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)
        self.retry_after = retry_after

    @classmethod
    def for_code(cls, code: str) -> type[RlvoError]:
        """The class that stands for a problem ``code``; the root for a code this version does not know."""
        return cls._by_code.get(code, RlvoError)

    def __reduce__(self) -> tuple[object, ...]:
        # Job steps cross a process boundary by pickle; keyword arguments would be lost by the default.
        return (_rebuild, (type(self), self.detail, self.errors, self.retry_after))


def _rebuild(cls: type[RlvoError], detail: str, errors: tuple[FieldError, ...], retry_after: float | None) -> RlvoError:
    return cls(detail, errors=errors, retry_after=retry_after)


# 400 ---------------------------------------------------------------------------------------------------------------


class BadRequest(RlvoError):
    code, status, title = "bad-request", 400, "The request cannot be understood"


class MalformedMultipart(BadRequest):
    code, title = "malformed-multipart", "The multipart body is malformed"


class MalformedJson(BadRequest):
    code, title = "malformed-json", "The JSON document cannot be read"


class IdempotencyKeyMissing(BadRequest):
    code, title = "idempotency-key-missing", "An Idempotency-Key header is required"


class DigestMismatch(BadRequest):
    code, title = "digest-mismatch", "The body does not match the digest sent with it"


# 401, 403 ----------------------------------------------------------------------------------------------------------


class NotAllowed(RlvoError):
    code, status, title = "forbidden", 403, "This caller may not do that"


class Unauthenticated(NotAllowed):
    code, status, title = "unauthenticated", 401, "An API key is required"


class InsufficientScope(NotAllowed):
    code, title = "insufficient-scope", "The API key lacks the scope for this call"


# 404, 405, 410 -----------------------------------------------------------------------------------------------------


class NotFound(RlvoError):
    code, status, title = "not-found", 404, "There is nothing at this address"


class PredictionNotFound(NotFound):
    code, title = "prediction-not-found", "There is no such prediction"


class ModelNotFound(NotFound):
    code, title = "model-not-found", "There is no such model version"


class MethodNotAllowed(RlvoError):
    code, status, title = "method-not-allowed", 405, "This address does not take that method"


class Gone(RlvoError):
    code, status, title = "gone", 410, "This is gone"


class Erased(Gone):
    code, title = "erased", "This prediction was erased"


# 408, 409, 412, 428 ------------------------------------------------------------------------------------------------


class UploadTimeout(RlvoError):
    code, status, title = "upload-timeout", 408, "The request body did not arrive in time"


class HeadersTooLate(RlvoError):
    code, status, title = "header-timeout", 408, "The head of the request did not arrive in time"


class Conflict(RlvoError):
    code, status, title = "conflict", 409, "The request conflicts with the present state"


class RequestInProgress(Conflict):
    code, title = "request-in-progress", "A request with this Idempotency-Key is still being received"


class AliasConflict(Conflict):
    code, title = "alias-conflict", "The alias was moved by someone else"


class NotFinished(Conflict):
    code, title = "not-finished", "The prediction has not finished"


class EtagMismatch(Conflict):
    code, status, title = "etag-mismatch", 412, "The record has changed since it was read"


class PreconditionRequired(Conflict):
    code, status, title = "precondition-required", 428, "An If-Match header is required"


# 411, 413, 415, 417, 431 -------------------------------------------------------------------------------------------


class TooLarge(RlvoError):
    code, status, title = "payload-too-large", 413, "The body is larger than this service accepts"


class DecompressedTooLarge(TooLarge):
    code, title = "decompressed-too-large", "The volume inflates to more than this service accepts"


class HeadersTooLarge(RlvoError):
    code, status, title = "headers-too-large", 431, "The head of the request is larger than this service accepts"


class UnsupportedMedia(RlvoError):
    code, status, title = "unsupported-media", 415, "The media type is not one this call takes"


class ExpectationFailed(RlvoError):
    code, status, title = "expectation-failed", 417, "The service does not meet this expectation"


# 422 ---------------------------------------------------------------------------------------------------------------


class InvalidStudy(RlvoError):
    code, status, title = "invalid-study", 422, "The study cannot be used as it is"


class InvalidRequest(InvalidStudy):
    code, title = "invalid-request", "A parameter of the request is out of its range"


class InvalidVolume(InvalidStudy):
    code, title = "nifti-invalid", "The file is not a volume that can be read exactly"


class GeometryMismatch(InvalidStudy):
    code, title = "geometry-mismatch", "The volumes do not lie on matching grids"


class ImplausibleModality(InvalidStudy):
    code, title = "modality-implausible", "The volume is not what its field claims"


class InvalidClinical(InvalidStudy):
    code, title = "clinical-invalid", "The clinical document is not valid"


class MissingInput(InvalidStudy):
    code, title = "missing-required-input", "An input that the model requires is missing"


class IdempotencyKeyReused(InvalidStudy):
    code, title = "idempotency-key-reused", "The Idempotency-Key was used with another body"


# 429 ---------------------------------------------------------------------------------------------------------------


class Busy(RlvoError):
    code, status, title = "busy", 429, "Too much at once"


class RateLimited(Busy):
    code, title = "rate-limited", "This caller sends too many requests"


class QueueFull(Busy):
    code, title = "queue-full", "The queue is full"


# 5xx ---------------------------------------------------------------------------------------------------------------


class InternalError(RlvoError):
    code, status, title = "internal-error", 500, "Something failed on our side"


class Quarantined(InternalError):
    code, title = "quarantined", "The work on the prediction was given up"


class Unavailable(RlvoError):
    code, status, title = "unavailable", 503, "The service cannot answer just now"


class ModelNotReady(Unavailable):
    code, title = "model-not-ready", "The model version is not ready to serve"


class DatabaseUnavailable(Unavailable):
    code, title = "database-unavailable", "The database cannot be reached"


class IdentityUnavailable(Unavailable):
    code, title = "identity-unavailable", "The identity provider cannot be reached"


class Draining(Unavailable):
    code, title = "draining", "The service is shutting down"


class StorageFull(Unavailable):
    code, status, title = "storage-full", 507, "The storage is full"


# client side -------------------------------------------------------------------------------------------------------


class TransportError(RlvoError):
    """Raised by the client alone: the service was not reached, or what answered was not rlvo."""

    code, status, title = "transport-error", 0, "The service did not answer"
