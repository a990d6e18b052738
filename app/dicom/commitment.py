"""Messages of storage commitment: which instances are meant, and what becomes of them.

Sources: DICOM PS3.4, annex J (storage commitment service class, push model); PS3.3, C.14 (failure reasons).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.dataset import Dataset

__all__ = [
    "ALL_COMMITTED",
    "NO_SUCH_INSTANCE",
    "OTHER_CLASS",
    "PROCESSING_FAILURE",
    "PUSH_MODEL",
    "PUSH_MODEL_INSTANCE",
    "REQUEST",
    "SOME_FAILED",
    "Malformed",
    "Report",
    "new_transaction",
    "read_report",
    "read_request",
    "report_message",
    "request_message",
    "understood",
]

PUSH_MODEL, PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
REQUEST = 1  # action type
ALL_COMMITTED, SOME_FAILED = 1, 2  # event types
PROCESSING_FAILURE, NO_SUCH_INSTANCE, OTHER_CLASS = 0x0110, 0x0112, 0x0119
MAX_REFERENCES = 5000
Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID = 64


class Malformed(Exception):
    """A message that cannot be understood; its text is the type of the error, without values of the message."""


@dataclass(frozen=True)
class Report:
    """What an archive says.

    Attributes:
        transaction_uid: the request that it answers.
        committed: SOP Instance UIDs of the instances that it keeps.
        failed: failure reason of the others, by SOP Instance UID.
    """

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]

    @property
    def reasons(self) -> dict[str, str]:
        """Failure reasons as words, by SOP Instance UID."""
        return {uid: f"failed-{code:04x}" for uid, code in self.failed.items()}

    def joined(self, later: Report) -> Report:
        """This report with what a later one of the same transaction says."""
        failed = {uid: code for uid, code in self.failed.items() if uid not in later.committed} | dict(later.failed)
        return Report(self.transaction_uid, self.committed | later.committed, failed)

    def names(self, uids: Iterable[str]) -> bool:
        """Whether the report names all these instances."""
        return set(uids) <= self.committed | self.failed.keys()


@contextmanager
def understood() -> Iterator[None]:
    """Raise Malformed for every error of the block, which reads a message."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - pydicom converts a value when it is read; each damage has its own error
        raise Malformed(type(error).__name__) from None


def new_transaction() -> str:
    """A Transaction UID that no other request has (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def request_message(transaction_uid: str, instances: Sequence[Reference]) -> Dataset:
    """Action information of a request for the commitment of these instances."""
    message = Dataset()
    message.TransactionUID = transaction_uid
    message.ReferencedSOPSequence = [_item(each) for each in instances]
    return message


def report_message(transaction_uid: str, instances: Sequence[Reference], failed: Mapping[str, int]) -> Dataset:
    """Event information of a report; ``failed`` has the failure reasons by SOP Instance UID."""
    message = Dataset()
    message.TransactionUID = transaction_uid
    if committed := [_item(each) for each in instances if each[1] not in failed]:
        message.ReferencedSOPSequence = committed
    if others := [each for each in instances if each[1] in failed]:
        items = [_item(each) for each in others]
        for item, (_, uid) in zip(items, others, strict=True):
            item.FailureReason = failed[uid]
        message.FailedSOPSequence = items
    return message


def read_request(message: Dataset) -> tuple[str, list[Reference]]:
    """Transaction UID and instances of a request.

    Raises:
        Malformed: a UID is missing, or there are no instances or too many.
    """
    instances = _references(message, "ReferencedSOPSequence")
    if not 1 <= len(instances) <= MAX_REFERENCES:
        raise Malformed
    return _uid(message, "TransactionUID"), [(sop_class, uid) for sop_class, uid, _ in instances]


def read_report(message: Dataset) -> Report:
    """What an archive says. Raises Malformed."""
    committed, failed = (_references(message, name) for name in ("ReferencedSOPSequence", "FailedSOPSequence"))
    reasons = {uid: reason for _, uid, reason in failed}
    return Report(_uid(message, "TransactionUID"), frozenset(uid for _, uid, _ in committed), reasons)


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    return item


def _references(message: Dataset, name: str) -> list[tuple[str, str, int]]:
    items = message.get(name) or []
    return [
        (
            _uid(item, "ReferencedSOPClassUID"),
            _uid(item, "ReferencedSOPInstanceUID"),
            int(item.get("FailureReason") or PROCESSING_FAILURE),
        )
        for item in items
    ]


def _uid(dataset: Dataset, name: str) -> str:
    value = str(dataset.get(name, ""))
    if not _UID.fullmatch(value) or len(value) > _MAX_UID:
        raise Malformed
    return value
