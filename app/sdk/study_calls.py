"""Operations on received DICOM studies: ``client.studies``, blocking or asynchronous like the client.

with Client(url, api_key=key) as rlvo:
    for study in rlvo.studies.list():
        print(study.uid, study.state, [series.role for series in study.series])
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from typing import Protocol, TypeVar

from ._calls import Call, Steps, Verbs
from ._replies import parse
from .clinical import ClinicalRecord
from .errors import NotFound
from .studies import ReceivedStudy, ReceivedStudyPage, StudyRecord

__all__ = ["AsyncStudies", "Studies"]

_RECORDS = "/v1/study-records"
T = TypeVar("T")
Record = ClinicalRecord | Mapping[str, object]


class _StudyVerbs:
    """Methods of the studies as generators of steps."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    def page(self, cursor: str | None, accession_number: str | None) -> Steps[ReceivedStudyPage]:
        call = Call("GET", "/v1/studies", params=_given(cursor=cursor, accession_number=accession_number))
        return parse(ReceivedStudyPage, (yield from self._verbs.exchange(call)))

    def pull_by_accession(self, accession_number: str, source: str | None) -> Steps[ReceivedStudyPage]:
        params = _given(accession_number=accession_number, source=source)
        return parse(
            ReceivedStudyPage, (yield from self._verbs.exchange(Call("POST", "/v1/study-pulls", params=params)))
        )

    def record(self, accession_number: str, document: str) -> Steps[StudyRecord]:
        call = Call("PUT", _RECORDS, document=document, params={"accession_number": accession_number})
        return parse(StudyRecord, (yield from self._verbs.exchange(call)))

    def withdraw(self, accession_number: str) -> Steps[None]:
        call = Call("DELETE", _RECORDS, params={"accession_number": accession_number})
        yield from self._verbs.exchange(call, done=NotFound)

    def send(
        self, method: str, uid: str, part: str = "", document: str | None = None, params: dict[str, str] | None = None
    ) -> Steps[ReceivedStudy]:
        call = Call(method, f"/v1/studies/{uid}{part}", document=document, params=params or {})
        return parse(ReceivedStudy, (yield from self._verbs.exchange(call)))

    def erase(self, uid: str) -> Steps[None]:
        yield from self._verbs.exchange(Call("DELETE", f"/v1/studies/{uid}"), done=NotFound)


def _given(**params: str | None) -> dict[str, str]:
    return {name: value for name, value in params.items() if value is not None}


def _clinical(record: Record) -> str:
    if isinstance(record, ClinicalRecord):
        return record.model_dump_json(exclude_none=True)
    return json.dumps(dict(record))


class _Run(Protocol):
    def __call__(self, steps: Steps[T]) -> T: ...


class _RunAsync(Protocol):
    def __call__(self, steps: Steps[T]) -> Awaitable[T]: ...


class Studies:
    """Received studies of the service of a ``Client``; a study is named by its Study Instance UID."""

    def __init__(self, verbs: Verbs, run: _Run) -> None:
        self._verbs = _StudyVerbs(verbs)
        self._run = run

    def list(self, *, accession_number: str | None = None) -> Iterator[ReceivedStudy]:
        """Iterate over received studies, newest first, or those with an accession number; pages come on demand."""
        cursor = None
        while True:
            page = self._run(self._verbs.page(cursor, accession_number))
            yield from page.items
            if (cursor := page.next) is None:
                return

    def get(self, uid: str) -> ReceivedStudy:
        """Return a study: its state, its series with their roles, and its predictions; raises ``NotFound``."""
        return self._run(self._verbs.send("GET", uid))

    def complete(self, uid: str, *, instances: int | None = None) -> ReceivedStudy:
        """Say that nothing more will arrive, so that the study is assembled now, or how many instances there are."""
        params = _given(instances=None if instances is None else str(instances))
        return self._run(self._verbs.send("POST", uid, "/complete", params=params))

    def pull(self, uid: str, *, source: str | None = None) -> ReceivedStudy:
        """Fetch a study from an archive of the tenant, by the name or id of the archive; ``pull`` shows the state."""
        return self._run(self._verbs.send("POST", uid, "/pull", params=_given(source=source)))

    def pull_by_accession(self, accession_number: str, *, source: str | None = None) -> ReceivedStudyPage:
        """Fetch the studies with an accession number from an archive; raises ``NotFound`` if there is none."""
        return self._run(self._verbs.pull_by_accession(accession_number, source))

    def set_roles(self, uid: str, roles: Mapping[str, str]) -> ReceivedStudy:
        """State roles by Series Instance UID, in place of those stated before."""
        return self._run(self._verbs.send("PUT", uid, "/roles", json.dumps(dict(roles))))

    def set_clinical(self, uid: str, record: Record) -> ReceivedStudy:
        """Join the clinical record to a study, before or after its images."""
        return self._run(self._verbs.send("PUT", uid, "/clinical", _clinical(record)))

    def set_clinical_by_accession(self, accession_number: str, record: Record) -> StudyRecord:
        """Join the clinical record to the study with an accession number, or keep it until that study arrives.

        Raises ``Conflict`` if several studies have this number.
        """
        return self._run(self._verbs.record(accession_number, _clinical(record)))

    def withdraw_clinical(self, accession_number: str) -> None:
        """Delete a clinical record that waits for its study; raises ``NotFound`` if there is none."""
        self._run(self._verbs.withdraw(accession_number))

    def cancel(self, uid: str) -> ReceivedStudy:
        """Cancel the unfinished predictions of a study, and make no further one until ``complete``."""
        return self._run(self._verbs.send("POST", uid, "/cancel"))

    def erase(self, uid: str) -> None:
        """Erase a study with its instances and its predictions permanently."""
        self._run(self._verbs.erase(uid))


class AsyncStudies:
    """``Studies`` to await."""

    def __init__(self, verbs: Verbs, run: _RunAsync) -> None:
        self._verbs = _StudyVerbs(verbs)
        self._run = run

    async def list(self, *, accession_number: str | None = None) -> AsyncIterator[ReceivedStudy]:
        """See ``Studies.list``."""
        cursor = None
        while True:
            page = await self._run(self._verbs.page(cursor, accession_number))
            for study in page.items:
                yield study
            if (cursor := page.next) is None:
                return

    async def get(self, uid: str) -> ReceivedStudy:
        """See ``Studies.get``."""
        return await self._run(self._verbs.send("GET", uid))

    async def complete(self, uid: str, *, instances: int | None = None) -> ReceivedStudy:
        """See ``Studies.complete``."""
        params = _given(instances=None if instances is None else str(instances))
        return await self._run(self._verbs.send("POST", uid, "/complete", params=params))

    async def pull(self, uid: str, *, source: str | None = None) -> ReceivedStudy:
        """See ``Studies.pull``."""
        return await self._run(self._verbs.send("POST", uid, "/pull", params=_given(source=source)))

    async def pull_by_accession(self, accession_number: str, *, source: str | None = None) -> ReceivedStudyPage:
        """See ``Studies.pull_by_accession``."""
        return await self._run(self._verbs.pull_by_accession(accession_number, source))

    async def set_roles(self, uid: str, roles: Mapping[str, str]) -> ReceivedStudy:
        """See ``Studies.set_roles``."""
        return await self._run(self._verbs.send("PUT", uid, "/roles", json.dumps(dict(roles))))

    async def set_clinical(self, uid: str, record: Record) -> ReceivedStudy:
        """See ``Studies.set_clinical``."""
        return await self._run(self._verbs.send("PUT", uid, "/clinical", _clinical(record)))

    async def set_clinical_by_accession(self, accession_number: str, record: Record) -> StudyRecord:
        """See ``Studies.set_clinical_by_accession``."""
        return await self._run(self._verbs.record(accession_number, _clinical(record)))

    async def withdraw_clinical(self, accession_number: str) -> None:
        """See ``Studies.withdraw_clinical``."""
        await self._run(self._verbs.withdraw(accession_number))

    async def cancel(self, uid: str) -> ReceivedStudy:
        """See ``Studies.cancel``."""
        return await self._run(self._verbs.send("POST", uid, "/cancel"))

    async def erase(self, uid: str) -> None:
        """See ``Studies.erase``."""
        await self._run(self._verbs.erase(uid))
