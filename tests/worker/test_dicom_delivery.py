"""Results arrive once in a real Orthanc, by STOW-RS and by C-STORE, also if it was away."""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text, update

from app.core.config import Settings
from app.core.egress import EgressClient
from app.core.sealing import open_text, seal_text
from app.database import destinations, figure_state, job_state, predictions
from app.database.destination_tables import DeliveryRow
from app.database.destinations import Destination, DestinationKind
from app.database.session import Database, now
from app.database.tables import PredictionRow
from app.dicom.errors import ArchiveFailed
from app.dicom.objects.sending import Sender
from app.dicom.objects.stored import ResultObjects
from app.dicom.return_address import seal
from app.sdk.deliveries import Delivery, DeliveryState
from app.storage.local import Storage
from app.worker.dicom_delivery import DicomDelivery
from app.worker.queue import DICOM_JOB, Queue
from tests import study
from tests.certificates import certified
from tests.deployment import free_port
from tests.dicom.results import address, prediction
from tests.orthanc import PASSWORD, USER, Orthanc, running
from tests.receiver import receiving

KEY = bytes(range(32))
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class Site:
    """A service with its database, and what it delivers with."""

    database: Database
    queue: Queue
    objects: ResultObjects

    def delivery(self, hosts: str, **changes: float) -> DicomDelivery:
        egress = EgressClient(hosts, setting="RLVO_DICOM_HOSTS")
        return DicomDelivery(
            self.database, self.queue, self.objects, egress, **({"backoff": 10.0, "days": 3.0} | changes)
        )

    def destination(self, where: str, authorization: str = BASIC) -> Destination:
        kind = DestinationKind.STOW if "://" in where else DestinationKind.C_STORE
        with self.database.session() as session:
            return destinations.create(
                session,
                *("pacs", "PACS", kind, where),
                called="ARCHIVE",
                calling="RLVO",
                secret=seal_text(authorization, KEY),
            )

    def destinations(self) -> list[Destination]:
        with self.database.reading() as session:
            return destinations.listed(session)

    def answer(self, *, addressed: bool = True) -> str:
        """Id of a prediction that succeeded, recorded as a worker does."""
        sealed = seal(address(), KEY) if addressed else None
        new = study.new_prediction(return_address=sealed)
        made = prediction()
        with self.database.session() as session:
            predictions.add(session, new)
            begun = job_state.start(session, new.id)
            assert begun is not None
            result = job_state.PredictionResult(
                probability=0.37,
                interval=None,
                folds=[0.37],
                decision=None,
                flags=made.flags,
                perfusion=None,
                attribution=None,
                timings={},
                withheld=made.withheld,
            )
            assert job_state.succeed(session, begun, result)
            self.queue.queue_deliveries(session, new.id)
        return new.id

    def state(self, prediction_id: str) -> Delivery:
        with self.database.reading() as session:
            (found,) = predictions.find(session, prediction_id, None).deliveries or []
        return found

    def queued(self) -> list[str]:
        with self.database.reading() as session:
            query = text("SELECT workflow_uuid FROM workflow_status WHERE name = :name ORDER BY created_at, 1")
            return list(session.scalars(query, {"name": DICOM_JOB}))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = Database(f"sqlite:///{tmp_path}/rlvo.sqlite")
    database.upgrade()
    queue = Queue(database)
    queue.upgrade()
    settings = Settings(data_dir=tmp_path, dicom_return_key=base64.b64encode(KEY).decode())
    yield Site(database, queue, ResultObjects.of(settings, database, Storage(tmp_path / "blobs")))
    database.close()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as made:
        yield made


@pytest.mark.parametrize("kind", ["stow", "c-store"])
def test_a_result_arrives_once_also_if_it_is_sent_twice(
    site: Site, orthanc: Orthanc, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    before = orthanc.instances()
    if kind == "stow":
        place, hosts = orthanc.studies_url, f"http://127.0.0.1:{orthanc.http_port}"
    else:
        place, hosts = f"127.0.0.1:{orthanc.dicom_port}", f"127.0.0.1:{orthanc.dicom_port}"
    destination, prediction_id = site.destination(place), site.answer()
    site.delivery(hosts).deliver(destination.id, prediction_id, 1, 1)
    assert site.state(prediction_id).state is DeliveryState.DELIVERED
    once = orthanc.instances()
    assert len(once) == len(before) + 2
    with site.database.session() as session:
        assert site.queue.queue_deliveries(session, prediction_id, again=True) == 1
    assert site.state(prediction_id).state is DeliveryState.WAITING
    site.delivery(hosts).deliver(destination.id, prediction_id, 2, 1)
    assert site.state(prediction_id).state is DeliveryState.DELIVERED
    assert orthanc.instances() == once
    (patient,) = orthanc.get("/patients?expand")
    assert patient["MainDicomTags"]["PatientName"] == "Canary^Anna"
    assert "Canary" not in caplog.text
    assert "PID-4711" not in caplog.text


def test_an_archive_that_was_away_gets_the_result_once_when_it_is_back(site: Site, tmp_path: Path) -> None:
    port, dicom_port = free_port(), free_port()
    place = f"http://127.0.0.1:{port}/dicom-web/studies"
    destination, prediction_id = site.destination(place), site.answer()
    delivery = site.delivery(f"http://127.0.0.1:{port}")
    for tries in (1, 2):
        delivery.deliver(destination.id, prediction_id, 1, tries)
        state = site.state(prediction_id)
        assert (state.state, state.tries, state.reason) == (DeliveryState.WAITING, tries, "unreachable")
    assert site.queued() == [f"{DICOM_JOB}-{destination.id}-{prediction_id}-1-{tries}" for tries in (1, 2, 3)]
    with running(tmp_path / "orthanc", http_port=port, dicom_port=dicom_port) as back:
        delivery.deliver(destination.id, prediction_id, 1, 3)
        state = site.state(prediction_id)
        assert (state.state, state.reason) == (DeliveryState.DELIVERED, None)
        once = back.instances()
        delivery.deliver(destination.id, prediction_id, 1, 3)  # a job that runs again after a kill
        assert back.instances() == once
    assert len(once) == 2


def test_an_archive_that_refuses_is_tried_again_and_given_up_after_days(site: Site, orthanc: Orthanc) -> None:
    hosts = f"http://127.0.0.1:{orthanc.http_port}"
    destination, prediction_id = site.destination(orthanc.studies_url, "Basic d3Jvbmc6a2V5"), site.answer()
    site.delivery(hosts).deliver(destination.id, prediction_id, 1, 1)
    assert (site.state(prediction_id).state, site.state(prediction_id).reason) == (DeliveryState.WAITING, "refused-401")
    with site.database.session() as session:
        session.execute(update(DeliveryRow).values(since=now() - timedelta(days=4)))
    site.delivery(hosts).deliver(destination.id, prediction_id, 1, 2)
    assert site.state(prediction_id).state is DeliveryState.GIVEN_UP
    assert len(site.queued()) == 2


def test_a_check_asks_for_an_answer(site: Site, orthanc: Orthanc) -> None:
    hosts = f"http://127.0.0.1:{orthanc.http_port}, 127.0.0.1:{orthanc.dicom_port}"
    sender = Sender(EgressClient(hosts), seconds=60)
    sender.check(site.destination(orthanc.studies_url), BASIC)
    sender.check(site.destination(f"127.0.0.1:{orthanc.dicom_port}"), None)
    with pytest.raises(ArchiveFailed, match="refused-401"):
        sender.check(site.destination(orthanc.studies_url), None)
    with pytest.raises(ArchiveFailed, match="not-listed"):
        sender.check(site.destination("127.0.0.1:1"), None)


@pytest.mark.parametrize("tls", [True, False])
def test_an_archive_without_a_valid_certificate_is_named_so(site: Site, tmp_path: Path, tls: bool) -> None:
    certificate, key = certified(tmp_path / "tls", "127.0.0.1")  # signed by no authority that is known here
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with receiving(200, tls=context if tls else None) as receiver:
        hosts = EgressClient(f"127.0.0.1:{receiver.port}, 127.0.0.1")
        scheme = "https" if tls else "http"
        stow = site.destination(f"{scheme}://127.0.0.1:{receiver.port}/studies")
        c_store = replace(site.destination(f"127.0.0.1:{receiver.port}"), tls=tls)
        reasons = []
        for destination in (stow, c_store):
            with pytest.raises(ArchiveFailed) as failure:
                Sender(hosts, seconds=5).check(destination, None)
            reasons.append(str(failure.value))
    assert reasons == (["tls", "tls"] if tls else ["not-listed", "unreachable"])


def test_a_host_that_is_not_listed_is_not_called(site: Site) -> None:
    destination, prediction_id = site.destination("http://127.0.0.1:9/dicom-web/studies"), site.answer()
    site.delivery("").deliver(destination.id, prediction_id, 1, 1)
    assert site.state(prediction_id).reason == "not-listed"


def test_only_answers_with_a_return_address_are_sent_and_only_to_the_tenant(site: Site) -> None:
    site.destination("http://127.0.0.1:9/studies")
    with site.database.session() as session:
        destinations.create(session, "another", "PACS", DestinationKind.STOW, "http://127.0.0.1:9/studies")
    with site.database.reading() as session:
        assert predictions.find(session, site.answer(addressed=False), None).deliveries is None
    prediction_id = site.answer()
    assert site.state(prediction_id).state is DeliveryState.WAITING
    assert len(site.queued()) == 1


def test_an_erased_prediction_and_a_removed_destination_get_nothing(site: Site) -> None:
    destination = site.destination("http://127.0.0.1:9/studies")
    erased, kept = site.answer(), site.answer()
    with site.database.session() as session:
        predictions.erase(session, erased, None)
        assert destinations.pending(session, erased, destination.id, 1) is None
        assert destinations.end(session, destination.id)
    site.delivery("http://127.0.0.1:9").deliver(destination.id, kept, 1, 1)
    assert (site.state(kept).state, site.state(kept).reason) == (DeliveryState.GIVEN_UP, "removed")


def test_figures_that_are_drawn_later_are_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, prediction_id = site.destination("http://127.0.0.1:9/studies"), site.answer()
    monkeypatch.setattr(Sender, "reach", lambda *_: None)
    with site.database.session() as session:
        session.execute(update(PredictionRow).values(figures="pending"))
    site.delivery("").deliver(destination.id, prediction_id, 1, 1)
    assert site.state(prediction_id).reason == "figures-pending"
    assert site.state(prediction_id).tries == 0  # the archive was not asked
    with site.database.reading() as session:
        assert not figure_state.undrawn(session, prediction_id)  # the delivery has them drawn


def test_credentials_are_sealed(site: Site) -> None:
    destination = site.destination("http://127.0.0.1:9/studies", "Bearer canary")
    assert destination.secret is not None
    assert b"canary" not in destination.secret
    assert "canary" not in repr(destination)
    assert open_text(destination.secret, KEY) == "Bearer canary"
    assert open_text(destination.secret, bytes(32)) is None
    assert replace(destination, secret=None).secret is None
