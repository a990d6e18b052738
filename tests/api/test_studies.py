"""A received study becomes a prediction once, and a revision when its inputs change."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import event, select, update

from app.api import study_intake
from app.core.config import Settings
from app.database import studies
from app.database.api_keys import Scope
from app.database.session import now
from app.database.study_tables import InstanceRow, ReturnAddressRow, StudyRow
from app.database.tables import AuditRow, PredictionRow
from app.dicom.conversion import Conversion
from app.dicom.convert import convert
from app.dicom.head import read_head
from app.dicom.isolated import SpareProcess
from app.dicom.return_address import key_of, open_sealed
from app.sdk.studies import ReceivedStudy
from tests.api.conftest import RunningService, running, settings_in
from tests.api.responses import problem
from tests.api.test_stow import body as related
from tests.api.test_stow import store
from tests.dicom.studies import TILTED, contents, plan, voxels

pytestmark = pytest.mark.anyio
ISOLATED = "test_the_return_address_is_kept_sealed_with_a_key_and_erased"
BIRTH_DATE = "19330417"
KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def settings(tmp_path: Path, model_store: Path) -> Settings:
    return settings_in(tmp_path, model_store).model_copy(update={"dicom_quiet": 3600.0})


@pytest.fixture(autouse=True)
async def assembled_by_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests assemble studies themselves, so that they know when."""

    async def wait(_: object) -> None:
        return None

    monkeypatch.setattr(study_intake, "run", wait)


@pytest.fixture(autouse=True)
def converted_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test converts in a process of its own, as the service does; the others save its start."""
    if request.node.originalname == ISOLATED:
        return

    def in_process(source: Path, target: Path, *, timeout_s: float, spare: SpareProcess, **options: Any) -> Conversion:
        assert timeout_s > 0
        assert spare.take() is None
        return convert(source, target, **options)

    monkeypatch.setattr(study_intake, "convert_isolated", in_process)


def cta(**changes: Any) -> list[bytes]:
    described: dict[str, Any] = {"truth": "cta", "description": "CTA head", "number": 4, "contrast": "Iomeprol"}
    return contents(plan(TILTED, **(described | changes)))


def ncct() -> list[bytes]:
    return contents(plan(TILTED, voxels(1)))


async def receive(service: RunningService, *sent: bytes) -> str:
    """Store instances; returns the UID of their study."""
    answer = await store(service, related(*sent))
    assert answer.status_code == 200, answer.text
    service.services.index_all()
    with service.services.database.reading() as session:
        return session.scalars(select(StudyRow.uid)).one()


async def receive_beside(service: RunningService, *sent: bytes) -> str:
    """Store instances beside other studies; returns the UID of their study."""
    answer = await store(service, related(*sent))
    assert answer.status_code == 200, answer.text
    service.services.index_all()
    return read_head(io.BytesIO(sent[0])).study_uid


async def assemble(service: RunningService) -> None:
    while await study_intake.assemble_next(service.services):
        pass


async def read(service: RunningService, uid: str) -> dict[str, Any]:
    answer = await service.http.get(f"/v1/studies/{uid}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def completed(service: RunningService, uid: str) -> dict[str, Any]:
    answer = await service.http.post(f"/v1/studies/{uid}/complete")
    assert answer.status_code == 202, answer.text
    await assemble(service)
    return await read(service, uid)


async def test_a_received_study_waits_for_its_quiet_time_and_is_predicted_once(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await assemble(service)
    waiting = await read(service, uid)
    assert (waiting["state"], waiting["instances"], waiting["predictions"]) == ("receiving", 16, [])
    assert [(each["received"], each["role"]) for each in waiting["series"]] == [(16, None)]
    with service.services.database.session() as session:
        session.execute(update(StudyRow).values(due=now()))
    await assemble(service)
    study = await read(service, uid)
    assert (study["state"], study["completed"]) == ("predicted", "quiet")
    assert [(each["role"], each["used"], each["rule"]) for each in study["series"]] == [("cta", True, "words-cta")]
    (made,) = study["predictions"]
    prediction = (await service.http.get(f"/v1/predictions/{made['id']}")).json()
    assert prediction["study_instance_uid"] == uid
    assert prediction["inputs"]["cta"]["shape"] == list(voxels().shape)
    assert (await completed(service, uid))["predictions"] == [made]  # with the same inputs there is no revision


async def test_a_late_series_and_a_later_record_each_make_a_revision(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await completed(service, uid)
    await receive(service, *ncct())
    assert (await read(service, uid))["state"] == "receiving"
    study = await completed(service, uid)
    assert [(each["revision"], each["why"]) for each in study["predictions"]] == [(1, "call"), (2, "call")]
    answer = await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})
    assert answer.json()["clinical"] is True
    await assemble(service)
    third = (await read(service, uid))["predictions"][2]
    assert (third["revision"], third["why"]) == (3, "clinical")
    with service.services.database.reading() as session:
        row = session.get_one(PredictionRow, third["id"])
        assert (row.clinical, sorted(row.inputs or {})) == ({"age": 70}, ["cta", "ncct"])


async def test_a_record_may_come_before_the_images(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await service.http.delete(f"/v1/studies/{uid}")
    early = await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 81})
    assert (early.status_code, early.json()["state"]) == (200, "waiting")
    refused = await service.http.post(f"/v1/studies/{uid}/complete")
    assert problem(refused) == (409, "conflict")
    await receive(service, *cta())
    study = await completed(service, uid)
    with service.services.database.reading() as session:
        assert session.get_one(PredictionRow, study["predictions"][0]["id"]).clinical == {"age": 81}


async def test_a_stated_role_makes_a_revision_and_wrong_ones_are_refused(service: RunningService) -> None:
    uid = await receive(service, *cta(), *ncct())
    study = await completed(service, uid)
    by_role = {each["role"]: each["uid"] for each in study["series"]}
    answer = await service.http.put(f"/v1/studies/{uid}/roles", json={by_role["ncct"]: "other"})
    assert answer.json()["roles"] == {by_role["ncct"]: "other"}
    await assemble(service)
    study = await read(service, uid)
    assert [(each["rule"], each["used"]) for each in study["series"] if each["role"] == "other"] == [("stated", False)]
    assert [each["why"] for each in study["predictions"]] == ["call", "roles"]
    for wrong in ({"x": "ncct"}, {"1.2": "brain"}, [1], {"1.2": None}):
        assert problem(await service.http.put(f"/v1/studies/{uid}/roles", json=wrong))[0] == 422


async def test_a_study_without_a_usable_series_is_refused_with_the_reason(service: RunningService) -> None:
    uid = await receive(service, *contents(plan(image_type=("DERIVED", "SECONDARY", "MIP"), description="MIP")))
    study = await completed(service, uid)
    assert (study["state"], study["error"]["code"], study["predictions"]) == ("refused", "dicom-invalid", [])
    await receive(service, *cta())
    assert (await completed(service, uid))["state"] == "predicted"


async def test_a_record_with_an_own_variable_that_no_version_knows_any_more_is_refused(service: RunningService) -> None:
    uid = await receive(service, *cta())
    with service.services.database.session() as session:  # stored while there was a version with this variable
        session.execute(update(StudyRow).values(clinical={"age": 70, "own": {"ddimer": 5.0}}))
    study = await completed(service, uid)
    assert (study["state"], study["error"]["code"], study["predictions"]) == ("refused", "clinical-invalid", [])
    assert (await service.http.put(f"/v1/studies/{uid}/clinical", json={"age": 70})).status_code == 200
    assert (await completed(service, uid))["state"] == "predicted"


async def test_an_input_that_the_model_requires_is_missing_until_it_arrives(service: RunningService) -> None:
    uid = await receive(service, *ncct())
    assert (await completed(service, uid))["error"]["code"] == "missing-required-input"


async def test_what_arrives_during_an_assembly_makes_its_result_void(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await service.http.post(f"/v1/studies/{uid}/complete")
    with service.services.database.session() as session:
        claimed = studies.claim(session, lease=60)
    assert claimed is not None
    await receive(service, *ncct())
    study_intake._assemble(service.services, claimed)
    assert (await read(service, uid))["predictions"] == []
    study = await completed(service, uid)
    with service.services.database.reading() as session:
        (row,) = session.scalars(select(PredictionRow))
    assert sorted(row.inputs or {}) == ["cta", "ncct"]
    assert len(study["predictions"]) == 1


async def test_a_cancelled_study_makes_no_prediction_until_it_is_completed(service: RunningService) -> None:
    uid = await receive(service, *cta())
    prediction = (await completed(service, uid))["predictions"][0]["id"]
    cancelled = await service.http.post(f"/v1/studies/{uid}/cancel")
    assert cancelled.json()["state"] == "cancelled"
    assert (await service.http.get(f"/v1/predictions/{prediction}")).json()["status"] == "cancelled"
    await receive(service, *ncct())
    await assemble(service)
    assert (await read(service, uid))["state"] == "cancelled"
    assert len((await completed(service, uid))["predictions"]) == 2


async def test_path_takes_every_uid_that_the_reception_takes(service: RunningService) -> None:
    assert problem(await service.http.get("/v1/studies/1.2.840.01.5")) == (404, "not-found")
    assert problem(await service.http.get("/v1/studies/1.2.840.a"))[0] == 422


async def test_an_erased_study_leaves_nothing_but_its_ledger_entry(service: RunningService) -> None:
    uid = await receive(service, *cta())
    prediction = (await completed(service, uid))["predictions"][0]["id"]
    await store(service, related(*ncct()[:1]))  # not indexed yet
    assert (await service.http.delete(f"/v1/studies/{uid}")).status_code == 204
    assert problem(await service.http.get(f"/v1/studies/{uid}")) == (404, "not-found")
    assert problem(await service.http.get(f"/v1/predictions/{prediction}")) == (410, "erased")
    assert problem(await service.http.delete(f"/v1/studies/{uid}")) == (404, "not-found")
    with service.services.database.reading() as session:
        assert not list(session.scalars(select(InstanceRow)))
        actions = list(session.scalars(select(AuditRow.action)))
    assert actions[-1] == "study.erase"
    assert not [path for path in service.services.reception._folder.rglob("*") if path.is_file()]
    assert sorted(name.split("-")[0] for name in service.services.eraser.ledger.names()) == ["prediction", "study"]


async def test_a_restored_study_is_erased_again(service: RunningService) -> None:
    uid = await receive(service, *cta())
    with service.services.database.reading() as session:
        row = session.scalars(select(StudyRow)).one()
        kept = {name: getattr(row, name) for name in StudyRow.__table__.columns.keys()}  # noqa: SIM118 - no mapping
    await service.http.delete(f"/v1/studies/{uid}")
    with service.services.database.session() as session:
        session.add(StudyRow(**kept))
    assert service.services.eraser.compare().studies == [kept["id"]]
    service.services.eraser.replay(actor="operator")
    assert service.services.eraser.compare().undone == 0
    assert problem(await service.http.get(f"/v1/studies/{uid}")) == (404, "not-found")


async def test_studies_are_listed_newest_first_in_pages(service: RunningService) -> None:
    for number in range(3):
        await service.http.put(f"/v1/studies/1.2.{number}/clinical", json={})
    first = (await service.http.get("/v1/studies?limit=2")).json()
    rest = (await service.http.get("/v1/studies", params={"limit": 2, "cursor": first["next"]})).json()
    assert [each["uid"] for each in first["items"] + rest["items"]] == ["1.2.2", "1.2.1", "1.2.0"]
    assert rest["next"] is None


async def test_a_page_of_studies_needs_as_many_queries_as_one_study(service: RunningService) -> None:
    for number in range(5):
        await service.http.put(f"/v1/studies/1.2.{number}/clinical", json={})
    uid = await receive_beside(service, *cta())
    await completed(service, uid)
    counted: list[int] = []
    for limit in (1, 6):
        statements: list[str] = []
        with service.services.database.reading() as session:
            event.listen(
                session.connection(), "before_cursor_execute", lambda *call, seen=statements: seen.append(call[2])
            )
            page = studies.page(session, "local", limit=limit)
        counted.append(len(statements))
    assert counted[0] == counted[1]
    assert len(page.items) == 6
    assert page.items[0] == ReceivedStudy.model_validate(await read(service, uid))
    assert [len(each.series) for each in page.items] == [1, 0, 0, 0, 0, 0]


async def test_another_tenant_sees_no_study_and_scopes_are_needed(tmp_path: Path, model_store: Path) -> None:
    from app.database import api_keys

    async with running(settings_in(tmp_path, model_store).model_copy(update={"auth": "keys"})) as service:
        with service.services.database.session() as session:
            own = api_keys.create(session, "a", [Scope.PREDICT, Scope.READ], tenant="one")
            other = api_keys.create(session, "b", list(Scope), tenant="two")
        service.http.headers["Authorization"] = f"Bearer {own}"
        uid = await receive(service, *cta())
        assert problem(await service.http.delete(f"/v1/studies/{uid}")) == (403, "insufficient-scope")
        service.http.headers["Authorization"] = f"Bearer {other}"
        assert (await service.http.get("/v1/studies")).json()["items"] == []
        for call in ("GET", "DELETE"):
            assert problem(await service.http.request(call, f"/v1/studies/{uid}")) == (404, "not-found")


async def test_the_return_address_is_kept_sealed_with_a_key_and_erased(tmp_path: Path, model_store: Path) -> None:
    settings = settings_in(tmp_path, model_store).model_copy(update={"dicom_quiet": 3600.0})
    async with running(Settings(**(settings.model_dump() | {"dicom_return_key": KEY}))) as service:
        uid = await receive(service, *cta())
        prediction = (await completed(service, uid))["predictions"][0]["id"]
        with service.services.database.reading() as session:
            sealed = session.get_one(ReturnAddressRow, prediction).sealed
        key = key_of(KEY)
        assert key is not None
        address = open_sealed(sealed, key)
        assert (address.study_instance_uid, len(address.instances)) == (uid, 16)
        assert address.patient_id
        assert address.patient_id.encode() not in sealed
        await service.http.delete(f"/v1/predictions/{prediction}")
        with service.services.database.reading() as session:
            assert not list(session.scalars(select(ReturnAddressRow)))


async def test_without_a_key_no_return_address_is_kept(service: RunningService) -> None:
    uid = await receive(service, *cta())
    await completed(service, uid)
    with service.services.database.reading() as session:
        assert not list(session.scalars(select(ReturnAddressRow)))


CANARY = "canary7f3a"


def marked(data: bytes) -> bytes:
    """An instance with a canary in each attribute that names a patient, and in a private one."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.PatientName = f"{CANARY}^{CANARY}"
    dataset.PatientID = dataset.AccessionNumber = dataset.StudyID = f"{CANARY}-1"
    dataset.PatientBirthDate = BIRTH_DATE
    dataset.ReferringPhysicianName = dataset.StudyDescription = CANARY
    dataset.private_block(0x0029, f"{CANARY} block", create=True).add_new(1, "LO", CANARY)
    written = io.BytesIO()
    dataset.save_as(written)
    return written.getvalue()


async def test_no_identity_is_logged_or_answered(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    sent = [marked(each) for each in cta()]
    with caplog.at_level(logging.DEBUG):
        uid = await receive(service, *sent)
        refused = await store(
            service, related(marked(cta()[0])[:-100], sent[1][:300], sent[2])
        )  # another pixel; no UIDs
        answers = [await completed(service, uid)]
        await receive(service, marked(contents(plan(number=9, description=CANARY, modality="MR"))[0]))
        other = pydicom.dcmread(io.BytesIO(marked(ncct()[0])))
        other.PatientID = "another"
        mixed = io.BytesIO()
        other.save_as(mixed)
        await receive(service, mixed.getvalue())
        answers.append(await completed(service, uid))
    assert refused.status_code == 202
    assert answers[1]["error"]["code"] == "patient-mismatch"
    prediction = await service.http.get(f"/v1/predictions/{answers[0]['predictions'][0]['id']}")
    logged = " ".join(each.getMessage() for each in caplog.records if each.name.startswith("rlvo"))
    shown = [str(answers), refused.text, prediction.text, (await service.http.get("/metrics")).text, logged]
    assert not [text for text in shown if CANARY in text or BIRTH_DATE in text]
    assert uid not in logged


@pytest.mark.parametrize("cursor", ["x", "0" * 36])
async def test_a_wrong_cursor_or_uid_is_refused(shared_service: RunningService, cursor: str) -> None:
    assert problem(await shared_service.http.get("/v1/studies", params={"cursor": cursor}))[0] == 422
    assert problem(await shared_service.http.get("/v1/studies/1.2.x"))[0] == 422
