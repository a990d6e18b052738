"""Archives are asked for storage commitment of delivered results: a real Orthanc, and one that answers otherwise."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from pynetdicom import AE, build_role
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from sqlalchemy import select, update

from app.core.config import Settings
from app.core.egress import EgressClient
from app.database import commitments
from app.database.destination_tables import DeliveryRow, DestinationRow
from app.database.session import now
from app.database.tables import AuditRow
from app.dicom.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, Report, report_message
from app.dicom.listener import Listener
from app.dicom.objects.sending import Sender
from app.dicom.objects.stored import ResultObjects
from app.dicom.reception import Reception
from app.sdk.deliveries import CommitmentState, Delivery, DeliveryState
from app.storage.local import Storage
from app.worker.dicom_delivery import ASKED_AFTER
from tests.deployment import wait
from tests.dicom.archive import archive
from tests.dicom.studies import contents, plan, voxels
from tests.orthanc import Orthanc
from tests.worker.test_dicom_delivery import Site, orthanc, site

__all__ = ["orthanc", "site"]


@dataclass
class Listening:
    """The listener of a site, which archives report to."""

    port: int


@pytest.fixture
def listening(site: Site, tmp_path: Path) -> Iterator[Listening]:
    settings = Settings(data_dir=tmp_path, dicom_callers="ARCHIVE=pacs, OTHER=pacs, FOREIGN=another")
    listener = Listener(settings, Reception.of(settings, site.database, Storage(tmp_path / "blobs")))
    yield Listening(listener.start())
    listener.stop()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small objects of a result."""
    target = tmp_path_factory.mktemp("objects") / "objects.zip"
    with zipfile.ZipFile(target, "w") as packed:
        for number, content in enumerate(contents(plan(data=voxels(0)))[:2]):
            packed.writestr(str(number), content)
    return target


@pytest.fixture
def quick(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result has these objects, because to make real ones takes seconds."""
    monkeypatch.setattr(ResultObjects, "archive", lambda *_: nullcontext(objects))


def until(site: Site, prediction_id: str, state: CommitmentState) -> Delivery:
    end = time.monotonic() + 20
    while (found := site.state(prediction_id)).commitment is not state:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def delivered(site: Site, port: int) -> str:
    """Id of a prediction that was delivered by C-STORE."""
    place = f"127.0.0.1:{port}"
    destination, prediction_id = site.destination(place), site.answer()
    site.delivery(place).deliver(destination.id, prediction_id, 1, 1)
    return prediction_id


def send_report(
    port: int,
    title: str,
    transaction: str,
    uids: Sequence[str] = ("1.2.3",),
    *,
    role: bool = True,
    failed: dict[str, int] | None = None,
) -> bool:
    """Whether a report is accepted, on a new association with or without the role of a provider."""
    entity = AE(title)
    entity.add_requested_context(PUSH_MODEL)
    roles = [build_role(PUSH_MODEL, scp_role=True)] if role else None
    opened = entity.associate("127.0.0.1", port, ae_title="RLVO", ext_neg=roles)  # type: ignore[arg-type]
    if not opened.accepted_contexts:
        opened.release()
        return False
    items = [("1.2.840.10008.5.1.4.1.1.2", uid) for uid in uids]
    message = report_message(transaction, items, failed or {})
    status, _ = opened.send_n_event_report(message, 2 if failed else 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    opened.release()
    return bool(status.Status == 0)


def transaction_of(site: Site, prediction_id: str) -> str:
    with site.database.reading() as session:
        (row,) = session.query(DeliveryRow).filter_by(prediction_id=prediction_id).all()
        assert row.transaction_uid is not None
        return row.transaction_uid


def test_orthanc_commits_what_it_was_sent(site: Site, orthanc: Orthanc, listening: Listening) -> None:
    orthanc.knows("RLVO", listening.port)
    prediction_id = delivered(site, orthanc.dicom_port)
    assert site.state(prediction_id).state is DeliveryState.DELIVERED
    assert until(site, prediction_id, CommitmentState.COMMITTED).commitment_reason is None
    with site.database.reading() as session:
        noted = select(AuditRow.target).where(AuditRow.action == "dicom.committed")
        assert list(session.scalars(noted)) == [prediction_id]
        assert commitments.counts(session)[CommitmentState.COMMITTED] == 1
    assert len(site.queued()) >= 1


@pytest.mark.usefixtures("quick")
def test_stow_has_no_storage_commitment(site: Site, orthanc: Orthanc) -> None:
    destination, prediction_id = site.destination(orthanc.studies_url), site.answer()
    site.delivery(f"http://127.0.0.1:{orthanc.http_port}").deliver(destination.id, prediction_id, 1, 1)
    state = site.state(prediction_id)
    assert (state.state, state.commitment) == (DeliveryState.DELIVERED, None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("failed", "status", "state", "reason"),
    [
        (None, 0, CommitmentState.COMMITTED, None),
        (0x0112, 0, CommitmentState.REFUSED, "failed-0112"),
        (None, 0x0110, CommitmentState.REFUSED, "refused-0110"),
    ],
)
def test_a_report_on_the_same_association_is_taken(
    site: Site, failed: int | None, status: int, state: CommitmentState, reason: str | None
) -> None:
    with archive(failed=failed, status=status) as peer:
        prediction_id = delivered(site, peer.port)
    found = site.state(prediction_id)
    assert (found.state, found.commitment, found.commitment_reason) == (DeliveryState.DELIVERED, state, reason)
    ((_, items),) = peer.asked
    assert [uid for _, uid in items] == peer.stored
    assert len(site.queued()) == 1  # nothing is asked again


@pytest.mark.usefixtures("quick")
def test_an_association_ends_after_the_answer_to_its_report(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release before it ended a thread of the library, and its socket stayed open."""
    send = DIMSEServiceProvider.send_msg

    def slow(provider: DIMSEServiceProvider, primitive: Any, context: int) -> None:
        if isinstance(primitive, N_EVENT_REPORT) and primitive.MessageIDBeingRespondedTo is not None:
            time.sleep(0.5)
        send(provider, primitive, context)

    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", slow)
    with archive() as peer:
        prediction_id = delivered(site, peer.port)
    assert site.state(prediction_id).commitment is CommitmentState.COMMITTED


@pytest.mark.usefixtures("quick")
def test_a_silent_archive_is_asked_again_and_given_up(site: Site) -> None:
    with archive(silent=True) as peer:
        prediction_id = delivered(site, peer.port)
        destination = site.destinations()[0]
        delivery = site.delivery(f"127.0.0.1:{peer.port}")
        assert (site.state(prediction_id).commitment, len(peer.asked)) == (CommitmentState.ASKED, 1)
        for tries, gone in enumerate((*ASKED_AFTER[:-1], ASKED_AFTER[-1] + 1), start=2):
            with site.database.session() as session:
                session.execute(update(DeliveryRow).values(changed=now() - timedelta(seconds=gone)))
            delivery.deliver(destination.id, prediction_id, 1, tries)
    assert len(peer.asked) == len({transaction for transaction, _ in peer.asked}) == 3
    assert len(peer.stored) == 2  # nothing is sent again
    found = site.state(prediction_id)
    assert (found.state, found.commitment) == (DeliveryState.DELIVERED, CommitmentState.UNANSWERED)
    assert len(site.queued()) == 4


@pytest.mark.usefixtures("quick")
def test_a_report_is_taken_from_the_archive_that_was_asked_alone(site: Site, listening: Listening) -> None:
    with archive(silent=True) as peer:
        prediction_id = delivered(site, peer.port)
    transaction = transaction_of(site, prediction_id)
    for title in ("OTHER", "FOREIGN"):
        assert send_report(listening.port, title, transaction, peer.stored)
        assert not send_report(listening.port, title, transaction, role=False)  # no report is expected of it
    assert send_report(listening.port, "ARCHIVE", "1.2.3", peer.stored)
    assert site.state(prediction_id).commitment is CommitmentState.ASKED
    failed = {peer.stored[1]: 0x0213}
    assert send_report(listening.port, "ARCHIVE", transaction, peer.stored, role=False, failed=failed)
    found = site.state(prediction_id)
    assert (found.commitment, found.commitment_reason) == (CommitmentState.REFUSED, "failed-0213")


def said(site: Site, prediction_id: str) -> tuple[CommitmentState | None, str | None]:
    found = site.state(prediction_id)
    return found.commitment, found.commitment_reason


INCOMPLETE = (CommitmentState.ASKED, "incomplete")
COMMITTED = (CommitmentState.COMMITTED, None)


@pytest.mark.usefixtures("quick")
def test_reports_count_for_the_instances_that_they_name_alone(site: Site, listening: Listening) -> None:
    with archive(silent=True) as peer:
        prediction_id = delivered(site, peer.port)
    transaction, (first, second) = transaction_of(site, prediction_id), peer.stored
    for uids, failed in (((), {}), (("1.2.3",), {}), (("1.2.3",), {"1.2.3": 0x0112}), ((first,), {})):
        assert send_report(listening.port, "ARCHIVE", transaction, uids, failed=failed)
        assert said(site, prediction_id) == INCOMPLETE
    assert send_report(listening.port, "ARCHIVE", transaction, [second])
    assert said(site, prediction_id) == COMMITTED
    assert send_report(listening.port, "ARCHIVE", transaction, [first], failed={first: 0x0112})
    assert said(site, prediction_id) == (CommitmentState.REFUSED, "failed-0112")
    assert send_report(listening.port, "ARCHIVE", transaction, [second])
    assert said(site, prediction_id) == (CommitmentState.REFUSED, "failed-0112")
    with site.database.reading() as session:
        actions = select(AuditRow.action).where(AuditRow.target == prediction_id, AuditRow.actor == "listener")
        assert list(session.scalars(actions.order_by(AuditRow.seq))) == ["dicom.committed", "dicom.refused"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("again", [0, 1, 2])
def test_an_archive_whose_report_leaves_instances_out_is_asked_again(site: Site, again: int) -> None:
    with archive(listed=1) as peer:
        prediction_id = delivered(site, peer.port)
        destination = site.destinations()[0]
        assert said(site, prediction_id) == INCOMPLETE
    with archive(listed=again) as peer:
        with site.database.session() as session:
            values = {"changed": now() - timedelta(seconds=ASKED_AFTER[0] + 1)}
            session.execute(update(DeliveryRow).values(values))
            session.execute(update(DestinationRow).values(address=f"127.0.0.1:{peer.port}"))
        site.delivery(f"127.0.0.1:{peer.port}").deliver(destination.id, prediction_id, 1, 2)
    assert [len(items) for _, items in peer.asked] == [2]
    assert said(site, prediction_id) == (COMMITTED if again == 2 else INCOMPLETE)
    with archive(silent=True) as peer:
        with site.database.session() as session:
            session.execute(update(DeliveryRow).values(changed=now() - timedelta(seconds=ASKED_AFTER[-1] + 1)))
        site.delivery(f"127.0.0.1:{peer.port}").deliver(destination.id, prediction_id, 1, 4)
    given_up = (CommitmentState.UNANSWERED, "incomplete")
    assert said(site, prediction_id) == (COMMITTED if again == 2 else given_up)


def test_reports_without_end_hold_no_delivery() -> None:
    reports: SimpleQueue[Report] = SimpleQueue()
    ended = threading.Event()

    def flood() -> None:
        while not ended.wait(0.001):
            reports.put(Report("1.2", frozenset({"1.2.1"}), {}))
            reports.put(Report("1.3", frozenset({"1.2.2"}), {}))

    thread = threading.Thread(target=flood)
    thread.start()
    wait(lambda: not reports.empty())
    try:
        began = time.monotonic()
        heard = Sender(EgressClient(""), report_seconds=0.3)._heard(reports, "1.2", ["1.2.1", "1.2.2"])
        assert time.monotonic() - began < 5
    finally:
        ended.set()
        thread.join()
    assert heard == Report("1.2", frozenset({"1.2.1"}), {})
    reports.put(Report("1.2", frozenset({"1.2.1"}), {}))
    reports.put(Report("1.2", frozenset({"1.2.2"}), {"1.2.1": 0x0112}))
    heard = Sender(EgressClient(""), report_seconds=5)._heard(reports, "1.2", ["1.2.1", "1.2.2"])
    assert heard is not None
    assert (heard.committed, heard.reasons) == ({"1.2.1", "1.2.2"}, {"1.2.1": "failed-0112"})


@pytest.mark.usefixtures("quick")
def test_an_answer_to_a_request_whose_instances_were_not_noted_does_not_count(site: Site, listening: Listening) -> None:
    with archive(silent=True) as peer:
        prediction_id = delivered(site, peer.port)
    with site.database.session() as session:  # as an earlier release has asked
        session.execute(update(DeliveryRow).values(asked_items=None))
    assert send_report(listening.port, "ARCHIVE", transaction_of(site, prediction_id), peer.stored)
    assert said(site, prediction_id) == INCOMPLETE


@pytest.mark.usefixtures("quick")
def test_a_result_that_is_sent_again_forgets_the_answer(site: Site) -> None:
    with archive() as peer:
        prediction_id = delivered(site, peer.port)
    with site.database.session() as session:
        assert site.queue.queue_deliveries(session, prediction_id, again=True) == 1
    assert site.state(prediction_id).commitment is None
