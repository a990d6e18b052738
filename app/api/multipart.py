"""Parses a multipart/form-data body as a stream: the form-data rules on top of `app.core.multipart`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from app.core.multipart import PartsParser, Sink, boundary
from app.sdk.errors import MalformedMultipart, UnsupportedMedia

__all__ = ["FormParser", "PartHeader", "Sink"]


@dataclass(frozen=True)
class PartHeader:
    """Name and file name of a part. ``filename`` is None for a plain field; it is never stored."""

    name: str
    filename: str | None


class FormParser(PartsParser):
    """Writes the parts of a form-data body to sinks.

    Args:
        content_type: The Content-Type header of the request.
        open_part: Returns the sink of a part, or raises an error to refuse it.

    Raises:
        UnsupportedMedia: The body is not form-data.
        MalformedMultipart: The body breaks the format; every method can raise it.
    """

    def __init__(self, content_type: str, open_part: Callable[[PartHeader], Sink]) -> None:
        media_type, options = parse_options_header(content_type)
        if media_type != b"multipart/form-data":
            raise UnsupportedMedia("Send the body as multipart/form-data, with one part per volume.")
        super().__init__(boundary(options), lambda headers: open_part(_part_header(headers)))


def _part_header(headers: dict[bytes, bytes]) -> PartHeader:
    disposition, options = parse_options_header(headers.get(b"content-disposition", b"").decode("latin-1"))
    if disposition != b"form-data" or b"name" not in options:
        raise MalformedMultipart("Every part needs a header `Content-Disposition: form-data` with a name.")
    if headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in (b"binary", b"7bit", b"8bit"):
        raise MalformedMultipart("A part must be sent without a Content-Transfer-Encoding.")
    filename = options.get(b"filename")
    return PartHeader(
        name=options[b"name"].decode("utf-8", "replace"),
        filename=None if filename is None else filename.decode("utf-8", "replace"),
    )
