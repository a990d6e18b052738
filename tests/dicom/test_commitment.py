"""A real Orthanc asks the listener for storage commitment, and learns what is stored."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pynetdicom import AE, build_role, evt
from sqlalchemy import select, update

from app.core.config import Settings
from app.database import commitments, destinations
from app.database.destination_tables import CommitmentRequestRow
from app.database.destinations import DestinationKind
from app.database.session import Database, now
from app.database.study_tables import InstanceRow
from app.dicom.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST, Report, read_report, request_message
from app.dicom.head import Head, read_head
from app.dicom.listener import Listener
from app.dicom.reception import Reception
from app.storage.local import Storage
from tests.dicom.studies import contents, plan
from tests.orthanc import PASSWORD, USER, Orthanc, running

WRITTEN = contents(plan())[:4]
HEADS = [read_head(io.BytesIO(each)) for each in WRITTEN]
CT = HEADS[0].sop_class_uid


class Site:
    """A listener that has received instances."""

    def __init__(self, folder: Path, hosts: str, **changes: object) -> None:
        self.settings = Settings(
            data_dir=folder, dicom_callers="ARCHIVE=stroke, CT1=stroke, CT2=other", dicom_hosts=hosts, **changes
        )
        self.database = Database(self.settings.database)
        self.database.upgrade()
        self.storage = Storage(folder / "blobs")
        self.reception = Reception.of(self.settings, self.database, self.storage)
        for content in WRITTEN:
            draft = self.reception.draft()
            draft.write_bytes(content)
            self.reception.accept("stroke", draft)
        self.listener = Listener(self.settings, self.reception)
        self.port = self.listener.start()

    def knows(self, orthanc: Orthanc) -> None:
        """Make Orthanc a destination, which reports are sent to."""
        with self.database.session() as session:
            place = f"127.0.0.1:{orthanc.dicom_port}"
            kind = DestinationKind.C_STORE
            destinations.create(session, "stroke", "PACS", kind, place, called="ARCHIVE", calling="RLVO")

    def answered(self) -> bool:
        """Whether no request is left; the row goes after the other side has acknowledged the report."""
        end = time.monotonic() + 20
        while self.pending() and time.monotonic() < end:
            time.sleep(0.05)
        return self.pending() == 0

    def pending(self) -> int:
        with self.database.reading() as session:
            return len(list(session.scalars(select(CommitmentRequestRow))))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, orthanc: Orthanc) -> Iterator[Site]:
    made = Site(tmp_path, f"127.0.0.1:{orthanc.dicom_port}", dicom_storage_commitment="answer")
    yield made
    made.listener.stop()
    made.database.close()


def ask(orthanc: Orthanc, site: Site, instances: list[tuple[str, str]]) -> Any:
    """What Orthanc learns of instances."""
    orthanc.knows("RLVO", site.port)
    url, auth = f"http://127.0.0.1:{orthanc.http_port}", (USER, PASSWORD)
    document = {"DicomInstances": [{"SOPClassUID": sop_class, "SOPInstanceUID": uid} for sop_class, uid in instances]}
    answer = httpx.post(f"{url}/modalities/RLVO/storage-commitment", json=document, auth=auth, timeout=30)
    answer.raise_for_status()
    end = time.monotonic() + 30
    while (found := orthanc.get(answer.json()["Path"]))["Status"] == "Pending":
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_orthanc_learns_what_is_stored_and_what_is_not(site: Site, orthanc: Orthanc) -> None:
    site.knows(orthanc)
    held = [(head.sop_class_uid, head.sop_uid) for head in HEADS]
    found = ask(orthanc, site, held)
    assert found["Status"] == "Success"
    assert {each["SOPInstanceUID"] for each in found["Success"]} == {uid for _, uid in held}

    with site.database.session() as session:  # its files were deleted by retention, as `forget_bytes` does
        session.execute(update(InstanceRow).where(InstanceRow.uid == HEADS[0].sop_uid).values(digest=None))
        damaged = str(session.scalars(select(InstanceRow.digest).where(InstanceRow.uid == HEADS[1].sop_uid)).one())
    blob = next(path for path in (site.settings.data_dir / "blobs").rglob("*") if path.name == damaged)
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    others = [("1.2.840.10008.5.1.4.1.1.4", HEADS[2].sop_uid), (CT, "1.2.3")]
    found = ask(orthanc, site, [*held[:2], *others, held[3]])
    assert found["Status"] == "Failure"
    assert {each["SOPInstanceUID"] for each in found["Success"]} == {held[3][1]}
    failed = {each["SOPInstanceUID"]: each["FailureReason"] for each in found["Failures"]}
    assert failed == {HEADS[0].sop_uid: 0x0112, HEADS[1].sop_uid: 0x0110, HEADS[2].sop_uid: 0x0119, "1.2.3": 0x0112}
    assert site.answered()


def reports_to(title: str, port: int, instances: list[Head], seconds: float) -> list[Report]:
    """Reports that a sender takes on the association of its request, within some seconds."""
    taken: list[Report] = []

    def take(event: evt.Event) -> tuple[int, None]:
        taken.append(read_report(event.event_information))
        return 0, None

    entity = AE(title)
    entity.add_requested_context(PUSH_MODEL)
    opened = entity.associate("127.0.0.1", port, ae_title="RLVO", evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)])
    if not opened.is_established:  # the only context was not accepted
        raise PermissionError
    message = request_message("1.2.3.4", [(each.sop_class_uid, each.sop_uid) for each in instances])
    status, _ = opened.send_n_action(message, REQUEST, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    assert status.Status == 0
    end = time.monotonic() + seconds
    while not taken and time.monotonic() < end:
        time.sleep(0.05)
    opened.release()
    return taken


def test_a_sender_gets_its_answer_on_the_same_association(site: Site) -> None:
    (report,) = reports_to("CT1", site.port, HEADS, 20)
    assert (report.committed, report.failed) == (frozenset(each.sop_uid for each in HEADS), {})
    assert site.answered()


def test_instances_of_another_tenant_are_not_committed(site: Site) -> None:
    (report,) = reports_to("CT2", site.port, HEADS[:1], 20)
    assert report.failed == {HEADS[0].sop_uid: 0x0112}


def test_an_answer_waits_for_its_sender_and_is_given_up_after_a_day(site: Site) -> None:
    assert reports_to("CT1", site.port, HEADS[:1], 0) == []  # it leaves at once, and its address is not known
    time.sleep(2.5)
    assert site.pending() == 1
    (report,) = reports_to("CT1", site.port, HEADS[:1], 20)  # the same transaction: one answer
    assert report.committed
    assert site.answered()
    with site.database.session() as session:
        commitments.request(session, "stroke", "CT1", "1.2.9", [(CT, "1.2.3")], delay=-1.0)
        session.execute(update(CommitmentRequestRow).values(created=now() - timedelta(days=2)))
    assert site.answered()


def test_a_request_is_refused_by_default(tmp_path: Path, orthanc: Orthanc) -> None:
    """A scanner may delete what is committed, and the service deletes received files."""
    site = Site(tmp_path, "")
    try:
        with pytest.raises(PermissionError):
            reports_to("CT1", site.port, HEADS, 0)
        with pytest.raises(httpx.HTTPStatusError):
            ask(orthanc, site, [(CT, HEADS[0].sop_uid)])
        assert site.pending() == 0
    finally:
        site.listener.stop()
        site.database.close()


def test_who_reports_may_not_ask(tmp_path: Path) -> None:
    """A sender that takes the role of an archive gets no commitment either."""
    site = Site(tmp_path, "")
    try:
        entity = AE("CT1")
        entity.add_requested_context(PUSH_MODEL)
        role: Any = build_role(PUSH_MODEL, scu_role=True, scp_role=True)
        opened = entity.associate("127.0.0.1", site.port, ae_title="RLVO", ext_neg=[role])
        message = request_message("1.2.3.4", [(CT, HEADS[0].sop_uid)])
        status, _ = opened.send_n_action(message, REQUEST, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        assert status.Status == 0x0123  # no such action
        opened.release()
        assert site.pending() == 0
    finally:
        site.listener.stop()
        site.database.close()
