"""Studies are fetched from a real Orthanc: QIDO-RS and WADO-RS, C-FIND and C-MOVE."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pydicom
import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.database import destinations, pulls, studies
from app.database.destinations import Destination, DestinationKind
from app.database.session import Database
from app.database.study_tables import StudyRow
from app.dicom.errors import ArchiveFailed
from app.dicom.listener import Listener
from app.dicom.retrieval import StudyQuery
from app.dicom.return_address import accession_digest
from app.sdk.errors import InvalidRequest
from app.sdk.studies import PullState, ReceivedStudy
from app.storage.local import Storage
from app.worker.dicom_pull import DicomPull
from app.worker.queue import Queue
from tests.dicom.studies import contents, plan, voxels
from tests.orthanc import PASSWORD, USER, Orthanc, running

KEY = bytes(range(32))
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
ACCESSION = "CANARY4711"


def numbered(content: bytes, accession: str = ACCESSION) -> bytes:
    """The instance with an accession number."""
    dataset, out = pydicom.dcmread(io.BytesIO(content)), io.BytesIO()
    dataset.AccessionNumber = accession
    dataset.save_as(out)
    return out.getvalue()


SENT = [numbered(each) for each in contents(plan(), plan(number=4, data=voxels(1), description="CTA"))]
UID = str(pydicom.dcmread(io.BytesIO(SENT[0])).StudyInstanceUID)


@dataclass
class Site:
    """A service with its database and its listener."""

    settings: Settings
    database: Database
    storage: Storage

    @property
    def pulling(self) -> DicomPull:
        return DicomPull.of(self.settings, self.database, self.storage)

    def archive(self, where: str, authorization: str = BASIC) -> Destination:
        from app.core.sealing import seal_text

        kind = DestinationKind.STOW if "://" in where else DestinationKind.C_STORE
        with self.database.session() as session:
            called, secret = "ARCHIVE", seal_text(authorization, KEY)
            return destinations.create(
                session, "local", kind.value, kind, where, called=called, calling="RLVO", results=False, secret=secret
            )

    def pull(self, archive: Destination, uid: str = UID) -> ReceivedStudy:
        with self.database.session() as session:
            study_id, run = pulls.begin(session, archive, uid)
        self.pulling.pull(study_id, run)
        return self.study(uid)

    def study(self, uid: str = UID) -> ReceivedStudy:
        while self.pulling.reception.index():
            pass
        with self.database.reading() as session:
            return studies.find(session, "local", uid)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as made:
        for content in SENT:
            made.upload(content)
        yield made


@pytest.fixture
def site(tmp_path: Path, orthanc: Orthanc) -> Iterator[Site]:
    key = base64.b64encode(KEY).decode()
    hosts = f"http://127.0.0.1:{orthanc.http_port}, 127.0.0.1, http://127.0.0.1:9"
    settings = Settings(data_dir=tmp_path, dicom_return_key=key, dicom_hosts=hosts, dicom_quiet=3600.0)
    database = Database(settings.database)
    database.upgrade()
    Queue(database).upgrade()
    yield Site(settings, database, Storage(settings.blobs))
    database.close()


@pytest.fixture
def listening(site: Site, orthanc: Orthanc) -> Iterator[Listener]:
    listener = Listener(site.settings, site.pulling.reception)
    orthanc.knows("RLVO", listener.start())
    yield listener
    listener.stop()


def address(orthanc: Orthanc, kind: str) -> str:
    return orthanc.studies_url if kind == "stow" else f"127.0.0.1:{orthanc.dicom_port}"


@pytest.mark.parametrize("kind", ["stow", "c-store"])
def test_a_study_is_found_by_uid_and_by_accession_number(site: Site, orthanc: Orthanc, kind: str) -> None:
    archive = site.archive(address(orthanc, kind))
    for query in (StudyQuery(uid=UID), StudyQuery(accession_number=ACCESSION)):
        (found,) = site.pulling.find(archive, query)
        assert (found.uid, found.instances) == (UID, len(SENT))
    others = [StudyQuery("1.2.3"), StudyQuery(accession_number=ACCESSION[:-1])]
    wildcards = [StudyQuery("*"), StudyQuery(accession_number="CANARY*"), StudyQuery(accession_number="CANARY471?")]
    assert all(not site.pulling.find(archive, query) for query in (*others, *wildcards))


@pytest.mark.parametrize("kind", ["stow", "c-store"])
@pytest.mark.usefixtures("listening")
def test_a_fetched_study_is_complete_by_its_number_of_instances(
    site: Site, orthanc: Orthanc, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):  # as `configure_logging` does
        caplog.set_level(logging.WARNING, name)
    archive = site.archive(address(orthanc, kind))
    with site.database.session() as session:
        studies.set_clinical(session, "local", UID, {"age": 70}, quiet=3600.0)
    study = site.pull(archive)
    assert (study.pull.state, study.pull.reason, study.pull.source) == (PullState.DONE, None, kind)
    assert (study.instances, study.expected, study.completed) == (len(SENT), len(SENT), "count")
    with site.database.reading() as session:
        assert studies.is_due(session)  # without the quiet time of an hour
        found = studies.page(session, "local", accession=accession_digest(ACCESSION.encode(), KEY)).items
        assert [each.uid for each in found] == [UID]
        assert not studies.page(session, "local", accession=accession_digest(b"CANARY", KEY)).items
        row = session.scalars(select(StudyRow)).one()
        assert ACCESSION not in repr(vars(row))
    again = site.pull(archive)
    assert (again.pull.state, again.instances) == (PullState.DONE, len(SENT))
    assert ACCESSION not in caplog.text
    assert UID not in caplog.text


def test_a_study_without_a_record_waits_for_it_although_it_is_complete(site: Site, orthanc: Orthanc) -> None:
    study = site.pull(site.archive(orthanc.studies_url))
    assert (study.completed, study.state) == ("count", "receiving")
    with site.database.session() as session:
        assert not studies.is_due(session)
        studies.set_clinical(session, "local", UID, {"age": 70}, quiet=0.0)
        assert studies.is_due(session)


def test_a_stated_number_is_awaited(site: Site, orthanc: Orthanc) -> None:
    site.pull(site.archive(orthanc.studies_url))
    with site.database.session() as session:
        studies.set_clinical(session, "local", UID, {"age": 70}, quiet=3600.0)
        assert studies.complete(session, "local", UID, instances=len(SENT) + 1).state == "receiving"
        assert not studies.is_due(session)
        assert studies.complete(session, "local", UID, instances=len(SENT)).completed == "count"
        assert studies.is_due(session)


@pytest.mark.parametrize(
    ("where", "authorization", "uid", "reason"),
    [
        ("http://127.0.0.1:9/dicom-web/studies", BASIC, UID, "unreachable"),
        ("127.0.0.1:9", BASIC, UID, "unreachable"),
        ("http://pacs.example/studies", BASIC, UID, "not-listed"),
        ("pacs.example:104", BASIC, UID, "not-listed"),
        ("stow", "Basic d3Jvbmc6a2V5", UID, "refused-401"),
        ("stow", BASIC, "1.2.3", "not-found"),
        ("c-store", BASIC, "1.2.3", "not-found"),
    ],
)
def test_a_failure_is_named(
    site: Site, orthanc: Orthanc, where: str, authorization: str, uid: str, reason: str
) -> None:
    archive = site.archive(address(orthanc, where) if where in ("stow", "c-store") else where, authorization)
    pull = site.pull(archive, uid).pull
    assert (pull.state, pull.reason) == (PullState.FAILED, reason)


def test_an_archive_that_does_not_know_the_listener_fails(site: Site, orthanc: Orthanc) -> None:
    other = DicomPull.of(site.settings.model_copy(update={"dicom_ae_title": "OTHER"}), site.database, site.storage)
    archive = site.archive(address(orthanc, "c-store"))
    with pytest.raises(ArchiveFailed, match="refused-"):
        other.retrieval.fetch(archive, other.find(archive, StudyQuery(UID))[0], None, other.reception, "OTHER")


def test_a_replaced_request_and_a_removed_archive_fetch_nothing(site: Site) -> None:
    archive = site.archive("http://127.0.0.1:9/studies")
    with site.database.session() as session:
        study_id, first = pulls.begin(session, archive, UID)
        pulls.begin(session, archive, UID)
        assert pulls.due(session, study_id, first) is None
        destinations.end(session, archive.id)
    site.pulling.pull(study_id, first + 1)
    assert site.study().pull.reason == "removed"


def test_the_archive_is_the_named_one_or_the_only_one_of_the_tenant(site: Site) -> None:
    first, second = site.archive("http://127.0.0.1:9/studies"), site.archive("127.0.0.1:9")
    with site.database.reading() as session:
        assert destinations.source(session, "local", "stow") == first
        assert destinations.source(session, "local", second.id) == second
        for tenant, name in (("local", None), ("other", "stow"), ("local", "gone")):
            with pytest.raises(InvalidRequest):
                destinations.source(session, tenant, name)


def test_no_result_goes_to_an_archive_that_is_only_fetched_from(site: Site) -> None:
    assert not site.archive("http://127.0.0.1:9/studies").results


def test_an_archive_with_another_number_than_it_has_said_is_incomplete(site: Site, orthanc: Orthanc) -> None:
    archive = site.archive(orthanc.studies_url)
    study = site.pulling.find(archive, StudyQuery(UID))[0]
    more = type(study)(study.uid, (study.instances or 0) + 1)
    with pytest.raises(ArchiveFailed, match="incomplete"):
        site.pulling.retrieval.fetch(archive, more, BASIC, site.pulling.reception, "RLVO")
    assert not list(site.pulling.reception.incoming.iterdir())
    assert (
        httpx.get(f"http://127.0.0.1:{orthanc.http_port}/system", auth=(USER, PASSWORD), timeout=30).status_code == 200
    )
