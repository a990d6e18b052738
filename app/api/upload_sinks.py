"""Sinks of the parts of a submission: a volume, a DICOM study, a short field."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from app.api.dicom_uploads import STUDY, ZIP, ArchiveFile
from app.imaging.io.stream_check import StreamCheck
from app.sdk.errors import TooLarge
from app.sdk.types import Input
from app.storage.local import Writer

if TYPE_CHECKING:
    from app.api.uploads import UploadReceiver


class VolumeSink:
    """The sink of a volume. The first byte opens its writer.

    A browser also sends the empty file inputs of a form, without bytes and file name; they count as not sent.
    """

    def __init__(self, receiver: UploadReceiver, name: Input, *, has_filename: bool, converted: bool = False) -> None:
        self._receiver = receiver
        self._converted = converted
        self._start = b""  # the first bytes, while there are too few to recognise an archive
        self._archive: ArchiveFile | None = None
        self._name = name
        self._check = StreamCheck(name, receiver.limits)
        self._writer: Writer | None = None
        self._hash = hashlib.sha256()
        self._has_filename = has_filename

    def write(self, chunk: memoryview) -> None:
        content = bytes(chunk)
        if self._writer is None and self._archive is None:
            content = self._start = self._start + content
            if len(content) < len(ZIP):
                return
            self._begin(content)
        if self._archive is not None:
            self._archive.write(content)
        else:
            self._store(content)

    def _begin(self, content: bytes) -> None:
        self._start = b""
        if content.startswith(ZIP):
            self._archive = self._receiver.archives.open(self._name.value)
        else:
            self._writer, self._executor = self._receiver.open_volume(self._name)

    def _store(self, content: bytes) -> None:
        assert self._writer is not None
        self._executor(partial(self._hash.update, content))
        for piece in self._check.feed(content):
            self._executor(partial(self._writer.write, piece))

    def close(self) -> None:
        if self._archive is not None:
            self._receiver.field_done(self._name, self._archive.close())
            return
        if self._start:
            content = self._start
            self._begin(content)
            self._store(content)
        if self._writer is not None:
            self._executor.catch_up()
        empty_input = self._writer is None and not self._has_filename
        header = None if empty_input else self._check.finish()
        self._receiver.volume_done(self._name, header, self._hash.hexdigest(), converted=self._converted)


class StudySink:
    """The sink of a DICOM study in a ZIP archive. An empty file input of a form counts as not sent."""

    def __init__(self, receiver: UploadReceiver) -> None:
        self._receiver = receiver
        self._archive: ArchiveFile | None = None

    def write(self, chunk: memoryview) -> None:
        if self._archive is None:
            self._archive = self._receiver.archives.open(STUDY)
        self._archive.write(bytes(chunk))

    def close(self) -> None:
        self._receiver.field_done(STUDY, "" if self._archive is None else self._archive.close())


class FieldSink:
    """The sink of a short field, which is parsed when it is complete."""

    def __init__(self, receiver: UploadReceiver, name: str, limit: int, use: Callable[[bytes], None]) -> None:
        self._receiver = receiver
        self._name = name
        self._limit = limit
        self._use = use
        self._content = bytearray()

    def write(self, chunk: memoryview) -> None:
        if len(self._content) + len(chunk) > self._limit:
            raise TooLarge(f"The field {self._name} may have at most {self._limit} bytes.")
        self._content += chunk

    def close(self) -> None:
        content = bytes(self._content)
        if content or self._name == "clinical":  # browsers send empty fields; an empty document is an error
            self._use(content)
        self._receiver.field_done(self._name, hashlib.sha256(content).hexdigest())
