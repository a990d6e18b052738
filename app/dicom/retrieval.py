"""Find and fetch studies of an archive: QIDO-RS and WADO-RS, or C-FIND and C-MOVE.

Design notes:
- Fetched instances pass the reception like sent ones. By WADO-RS they are received here, as a stream; by C-MOVE the
  archive sends them to the listener of this service, whose AE title the archive must know.
- An archive may ignore a filter, so what it finds is compared with what was asked for.
- Only hosts that the operator listed are called (`app.core.egress`). The reason of a failure is a word.

Sources: DICOM PS3.18, 10.4 (retrieve) and 10.6 (search); PS3.4, annex C (query/retrieve).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from python_multipart.multipart import parse_options_header

from app.core.egress import EgressClient
from app.core.multipart import PartsParser, boundary
from app.database.destinations import Destination, DestinationKind
from app.dicom.archive_faults import http_faults
from app.dicom.errors import ArchiveFailed, Unreadable
from app.dicom.part_file import PartFile
from app.dicom.reception import MAX_INSTANCES, Reception
from app.sdk.errors import MalformedMultipart, TooLarge

__all__ = ["FoundStudy", "Retrieval", "StudyQuery"]

_FIND, _MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"  # of the study root
_UID, _ACCESSION, _COUNT = "0020000D", "00080050", "00201208"
_MOST = 20  # studies of one search
_MAX_ANSWER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
_SECONDS = 30.0
_MOVE_SECONDS = 300.0  # between two answers to C-MOVE; an archive may load a study from tape first
_PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True)
class StudyQuery:
    """The study that is asked for: by Study Instance UID, or by accession number."""

    uid: str = ""
    accession_number: str = ""

    def fits(self, uid: str, accession_number: str) -> bool:
        """Whether a study is the one that is asked for."""
        return self.uid in ("", uid) and self.accession_number in ("", accession_number)


@dataclass(frozen=True)
class FoundStudy:
    """A study of an archive: Study Instance UID, and number of instances if the archive states it."""

    uid: str
    instances: int | None = None


@dataclass(frozen=True)
class Retrieval:
    """Finds and fetches studies.

    Attributes:
        egress: the listed hosts.
        max_instance_bytes: largest instance.
        seconds: limit of each network operation.
    """

    egress: EgressClient
    max_instance_bytes: int
    seconds: float = _SECONDS

    def find(self, source: Destination, query: StudyQuery, authorization: str | None) -> list[FoundStudy]:
        """Ask an archive for a study.

        Args:
            source: the archive.
            query: what is asked for.
            authorization: value of the Authorization header (QIDO-RS).

        Returns:
            The studies that fit; several if an accession number has several.

        Raises:
            ArchiveFailed: the archive is away, or refuses.
        """
        if set("*?\\") & set(query.uid + query.accession_number):  # they would match other studies
            return []
        if source.kind is DestinationKind.STOW:
            return self._search(source, query, authorization)
        return self._find(source, query)

    def fetch(
        self, source: Destination, study: FoundStudy, authorization: str | None, reception: Reception, ae_title: str
    ) -> int:
        """Fetch all instances of a study; those that are here already are known and change nothing.

        Args:
            source: the archive.
            study: the study.
            authorization: value of the Authorization header (WADO-RS).
            reception: where the instances go (WADO-RS).
            ae_title: AE title of the listener that they go to (C-MOVE).

        Returns:
            The number of instances of the study that arrived, or that the archive sent.

        Raises:
            ArchiveFailed: the archive is away, or not all instances arrived.
            Unavailable: the disk or the database cannot be used.
        """
        if source.kind is DestinationKind.STOW:
            return self._retrieve(source, study, authorization, reception)
        return self._move(source, study, ae_title)

    def _search(self, source: Destination, query: StudyQuery, authorization: str | None) -> list[FoundStudy]:
        asked = {"StudyInstanceUID": query.uid, "AccessionNumber": query.accession_number}
        params = {name: value for name, value in asked.items() if value}
        url = str(httpx.URL(source.address, params={**params, "includefield": _COUNT, "limit": str(_MOST)}))
        with self._http(url, "application/dicom+json", authorization) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                return []
            if answer.status_code != httpx.codes.OK:
                raise ArchiveFailed(f"refused-{answer.status_code}")
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise ArchiveFailed("answer-not-understood")
        found = []
        try:
            for item in json.loads(body):
                uid, accession, count = (_value(item, tag) for tag in (_UID, _ACCESSION, _COUNT))
                if query.fits(str(uid), str(accession or "")):
                    found.append(FoundStudy(str(uid), int(count) if count else None))
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
            raise ArchiveFailed("answer-not-understood") from None
        return found

    def _retrieve(self, source: Destination, study: FoundStudy, authorization: str | None, reception: Reception) -> int:
        parts = _Parts(reception, source.tenant, study.uid, self.max_instance_bytes)
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        try:
            with self._http(f"{source.address}/{study.uid}", accept, authorization) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise ArchiveFailed(f"refused-{answer.status_code}")
                media_type, options = parse_options_header(answer.headers.get("content-type", ""))
                if media_type != b"multipart/related":
                    raise ArchiveFailed("answer-not-understood")
                parser = PartsParser(boundary(options), parts.open)
                for chunk in answer.iter_bytes(_PIECE_BYTES):
                    parser.write(chunk)
                parser.close()
        except MalformedMultipart:
            raise ArchiveFailed("answer-not-understood") from None
        except TooLarge:
            raise ArchiveFailed("too-large-instance") from None
        finally:
            parts.discard()
        if parts.refused or (study.instances or 0) > parts.accepted:
            raise ArchiveFailed("incomplete")
        return parts.accepted

    @contextmanager
    def _http(self, url: str, accept: str, authorization: str | None) -> Iterator[httpx.Response]:
        headers = {"Accept": accept} | ({"Authorization": authorization} if authorization else {})
        with http_faults(), self.egress.open("GET", url, b"", headers, seconds=self.seconds) as answer:
            yield answer

    def _find(self, source: Destination, query: StudyQuery) -> list[FoundStudy]:
        from pydicom.dataset import Dataset  # here: DICOMweb needs no DICOM library

        from app.dicom.association import association

        asked = Dataset()
        asked.QueryRetrieveLevel = "STUDY"
        asked.StudyInstanceUID, asked.AccessionNumber = query.uid, query.accession_number
        asked.NumberOfStudyRelatedInstances = None
        found = []
        with association(self.egress, self.seconds, source, [_FIND]) as opened:
            for number, (status, match) in enumerate(opened.send_c_find(asked, _FIND)):
                code = status.Status if "Status" in status else None
                if code is None:
                    raise ArchiveFailed("timeout")
                if code in _PENDING and match is not None and number < _MOST:
                    uid, accession = str(match.get("StudyInstanceUID", "")), str(match.get("AccessionNumber", ""))
                    count = match.get("NumberOfStudyRelatedInstances")
                    if query.fits(uid, accession):
                        found.append(FoundStudy(uid, int(count) if count else None))
                elif code != 0 and code not in _PENDING:
                    raise ArchiveFailed(f"refused-{code:04x}")
        return found

    def _move(self, source: Destination, study: FoundStudy, ae_title: str) -> int:
        from pydicom.dataset import Dataset

        from app.dicom.association import association

        asked = Dataset()
        asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study.uid
        with association(self.egress, self.seconds, source, [_MOVE]) as opened:
            opened.dimse_timeout = opened.network_timeout = _MOVE_SECONDS
            last: Any = None
            for status, _ in opened.send_c_move(asked, ae_title, _MOVE):
                last = status
        if last is None or "Status" not in last:
            raise ArchiveFailed("timeout")
        if last.Status != 0:
            raise ArchiveFailed("incomplete" if last.Status == 0xB000 else f"refused-{last.Status:04x}")
        return int(last.get("NumberOfCompletedSuboperations") or study.instances or 0)


class _Parts:
    """Receives the parts of an answer, each as an instance of one study."""

    def __init__(self, reception: Reception, tenant: str, study_uid: str, max_bytes: int) -> None:
        self._reception = reception
        self._tenant = tenant
        self._study_uid = study_uid
        self._max_bytes = max_bytes
        self._part: PartFile | None = None
        self.accepted = self.refused = 0

    def open(self, _headers: dict[bytes, bytes]) -> PartFile:
        """Begin a part."""
        if self.accepted + self.refused >= MAX_INSTANCES:
            raise ArchiveFailed("too-many-instances")
        self._part = PartFile(self._reception, self._max_bytes, self._accept)
        return self._part

    def _accept(self, path: Path) -> None:
        try:
            received = self._reception.accept(self._tenant, path)
        except Unreadable:
            self.refused += 1
            return
        if received.outcome.accepted and received.head.study_uid == self._study_uid:
            self.accepted += 1
        else:
            self.refused += 1

    def discard(self) -> None:
        """Delete the part that has not arrived completely."""
        if self._part is not None:
            self._part.discard()


def _value(item: dict[str, Any], tag: str) -> Any:
    """First value of an attribute in the JSON model (PS3.18, annex F); None without one."""
    values = item.get(tag, {}).get("Value") or [None]
    return values[0]
