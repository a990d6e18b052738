"""Checks the headers of a request that do not depend on the route.

Design notes:
- A header with one value may be sent only once, because a proxy and the service could read different ones.
- A list may be sent in several headers (RFC 9110, 5.3); they are joined, so that a route reads all of it.
- Bodies are read as they are sent; another content coding is refused.
"""

from __future__ import annotations

from collections import Counter

from starlette.datastructures import Headers

from app.sdk.errors import BadRequest, ExpectationFailed, UnsupportedMedia

RawHeaders = list[tuple[bytes, bytes]]

_SINGLE = (
    "authorization",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "inference-header-content-length",
    "origin",
    "x-api-key",
)
_LISTS = frozenset(
    (b"accept", b"content-digest", b"content-encoding", b"if-match", b"if-none-match", b"prefer", b"priority")
)
# A server may ignore Range (RFC 9110, 14.2). All responses are sent whole, so no range reaches a route.
_IGNORED = (b"range", b"if-range")


def merged(raw: RawHeaders) -> RawHeaders:
    """Returns the headers with one line for each list, and without those that the service ignores."""
    lines = Counter(name for name, _ in raw)
    joined: dict[bytes, bytes] = {}
    for name, value in raw:
        if name in _LISTS and lines[name] > 1:
            joined[name] = joined[name] + b", " + value if name in joined else value
    kept = [header for header in raw if header[0] not in _IGNORED and header[0] not in joined]
    return kept + list(joined.items())


def check(headers: Headers, *, has_body: bool) -> None:
    """Checks the headers of a request, joined by `merged`.

    Args:
        headers: The headers of the request.
        has_body: Whether the headers announce a body.

    Raises:
        BadRequest: A header with one value was sent twice.
        ExpectationFailed: The expectation is unknown, so the client would wait for it without end.
        UnsupportedMedia: The body has a content coding.
    """
    lines = Counter(name for name, _ in headers.items())
    for name in _SINGLE:
        if lines[name] > 1:
            raise BadRequest(f"The header {name} was sent {lines[name]} times. Send it once.")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise ExpectationFailed("This service supports only `Expect: 100-continue`.")
    codings = {coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")}
    if has_body and codings - {"", "identity"}:
        raise UnsupportedMedia(
            "The service reads bodies without a content coding. Send the body as it is, without Content-Encoding; "
            "a volume may be a .nii.gz file."
        )
