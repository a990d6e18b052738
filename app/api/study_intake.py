"""Makes predictions of received studies: assembles a complete study and passes it to the intake of uploads.

Design notes:
- The database says which study is due, and one process claims it for one lease (`RLVO_LEASE`) and renews the claim
  while it works. So the claim of a killed process ends within one lease, and another process takes over.
- Conversion, checks, blobs, row and job are those of an upload; only the end of the request is missing.
- A study with the inputs of its last revision makes no prediction; with others it makes a revision.
- A fault of the environment or a full queue postpones a study. A study that cannot be used is refused with its reason.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyio import sleep
from sqlalchemy.orm import Session

from app.api import dicom_uploads, submission
from app.api.dependencies import Services
from app.api.uploads import UploadReceiver, uid_or_none
from app.core.environment import is_environment_fault
from app.core.filesystem import private_folder
from app.core.logging import error_location
from app.database import audit, predictions, studies, trials
from app.database.api_keys import Caller
from app.database.predictions import NewPrediction
from app.database.studies import Assembly
from app.dicom.conversion import Conversion
from app.dicom.isolated import convert_isolated
from app.dicom.return_address import seal
from app.dicom.spare import MOST
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import Busy, InternalError, MissingInput, RlvoError, Unavailable
from app.sdk.types import Failure, Input, InputSummary, ModelRef
from app.storage.errors import storage_errors

log = logging.getLogger("rlvo.studies")

ACTOR = "dicom"  # of the audit log
IDLE_PAUSE = 1.0  # longest wait of a study that another process has completed, or that is quiet
ARRIVAL_PAUSE = 0.25  # between two looks while studies arrive, whose files are read
FAULT_PAUSE = 5.0
RETRY_SECONDS = 15.0


async def run(services: Services) -> None:
    """Assembles studies as they become due, one after another, until it is cancelled."""
    try:
        while True:
            try:
                worked = await assemble_next(services)
                if not worked:
                    arriving = await services.run_in_background(_prepare, services)
                    await services.study_due.pause(ARRIVAL_PAUSE if arriving else IDLE_PAUSE)
            except Exception as error:  # noqa: BLE001 - the claim ends, and the study is assembled again
                log.warning("studies are assembled again: %s", error_location(error))
                await sleep(FAULT_PAUSE)
    finally:
        services.spare_conversions.close()


async def assemble_next(services: Services) -> bool:
    """Assembles the study that has waited longest; returns False if none is due."""
    if services.draining or not await services.run_in_background(_is_due, services):
        return False
    async with services.conversion_slots:  # before the claim, so that its lease does not run while this waits
        claimed = await services.write(studies.claim, lease=services.settings.lease)
        if claimed is None:
            return False
        try:
            await services.run_in_thread(_assemble, services, claimed)
        except (Busy, Unavailable) as error:
            log.warning("a study is assembled again later: %s", error.code)
            await services.write(studies.postpone, claimed, seconds=RETRY_SECONDS)
        except RlvoError as error:
            await services.write(_refuse, claimed, error)
        except Exception as error:
            if is_environment_fault(error):
                raise
            log.error("a study cannot be assembled: %s", error_location(error))
            await services.write(_refuse, claimed, InternalError("The study could not be assembled; see the log."))
    return True


def _prepare(services: Services) -> bool:
    """Start the processes of the next conversions, which read what has arrived; return whether studies arrive."""
    if services.draining:
        return False
    spare = services.spare_conversions
    with services.database.reading() as session:
        arriving = studies.arriving(session, most=MOST)
        ready = bool(arriving) or studies.any_received(session)
    spare.keep([study for study, _ in arriving], ready=ready)
    limits, cpu_s = dicom_uploads.limits_of(services.settings), services.settings.dicom_timeout
    for study, count in arriving:
        if spare.lacks(study, count):
            with services.database.reading() as session:
                digests = studies.blobs(session, study)
            paths = [services.storage.path(digest) for digest in digests]
            spare.read(study, paths, count, limits=limits, cpu_s=cpu_s)
    return bool(arriving)


def _is_due(services: Services) -> bool:
    with services.database.reading() as session:
        return studies.is_due(session)


def _refuse(session: Session, claimed: Assembly, error: RlvoError) -> None:
    failure = Failure(code=error.code, title=error.title, detail=error.detail)
    if studies.refused(session, claimed, failure):
        audit.append(session, ACTOR, "study.refuse", claimed.id, {"code": error.code})


def _assemble(services: Services, claimed: Assembly) -> None:
    """Make the prediction of a study, and write it with the state of the study in one transaction."""
    with _renewed(services, claimed):
        _predict(services, claimed)


@contextmanager
def _renewed(services: Services, claimed: Assembly) -> Iterator[None]:
    """Renew a claim while the block runs, unless it hangs; a thread does it, so that no slow request delays it."""
    settings, ended = services.settings, threading.Event()
    until = time.monotonic() + settings.longest_intake

    def renew() -> None:
        while not ended.wait(settings.lease / 3) and time.monotonic() < until:
            try:
                with services.database.session() as session:
                    if not studies.renew(session, claimed, lease=settings.lease):
                        return
            except Exception as error:  # noqa: BLE001 - the next try may succeed
                log.warning("the claim of a study is renewed later: %s", error_location(error))

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _predict(services: Services, claimed: Assembly) -> None:
    settings = services.settings
    root = dicom_uploads.incoming(settings)
    upload = UploadReceiver(services.storage, settings, services.spare_conversions)
    try:
        with storage_errors():
            private_folder(root)
            folder = Path(tempfile.mkdtemp(dir=root))
        try:
            conversion = _convert(services, claimed, folder)
            upload.add_volumes(conversion)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        upload.study.record = ClinicalRecord.model_validate(claimed.clinical or {})
        upload.study.study_instance_uid = uid_or_none(claimed.uid)
        upload.study.address = conversion.address
        upload.check()
        with services.database.reading() as session:
            running = trials.running_at(session, claimed.caller)
        entry = submission.resolve_model(services, None, claimed.caller, running)
        submission.check_own_values(services, entry.manifest, upload.study.record)
        submission.check_required_inputs(entry.manifest, upload.study)
        inputs = upload.commit()
        model = ModelRef(name=entry.name, version=entry.version, digest=entry.digest)
        _record(services, claimed, upload, conversion, inputs, model)
    finally:
        upload.discard()


def _convert(services: Services, claimed: Assembly, folder: Path) -> Conversion:
    if not claimed.digests:
        raise MissingInput("The files of the study are deleted (RLVO_DICOM_KEEP_HOURS). Send the study again.")
    source, target = folder / "files", folder / "volumes"
    with storage_errors():
        source.mkdir()
        target.mkdir()
        for number, digest in enumerate(claimed.digests):
            _place(services, digest, source / f"{number:05d}")
    settings = services.settings
    return convert_isolated(
        source,
        target,
        overrides=claimed.roles,
        limits=dicom_uploads.limits_of(settings),
        timeout_s=settings.dicom_timeout,
        addressed=services.return_key is not None,
        spare=services.spare_conversions,
        study=claimed.id,
    )


def _place(services: Services, digest: str, target: Path) -> None:
    """Make a blob readable as a file of the folder: as a link, or as a copy on another disk."""
    path = services.storage.path(digest)
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise InternalError("A stored file of the study is missing; the operator can run `rlvo fsck`.") from None
    except OSError:
        shutil.copyfile(path, target)


def _record(
    services: Services,
    claimed: Assembly,
    upload: UploadReceiver,
    conversion: Conversion,
    inputs: dict[Input, InputSummary],
    model: ModelRef,
) -> None:
    study, key = upload.study, services.return_key
    clinical = study.record.model_dump(mode="json", exclude_none=True)
    assembled = _digest({name.value: each.sha256 for name, each in inputs.items()}, clinical)
    changed = assembled != claimed.assembled
    new = NewPrediction(
        id=predictions.new_id(),
        caller=claimed.caller,
        model=model,
        subject=None,
        study_instance_uid=study.study_instance_uid,
        explain=True,
        series=study.series,
        intake_flags=study.flags,
        clinical=clinical,
        inputs=inputs,
        return_address=seal(study.address, key) if study.address and key else None,
    )
    with services.database.session() as session:
        if not studies.holds(session, claimed):
            log.info("a study has changed while it was assembled, and is assembled again")
            return
        if changed:
            submission.enqueue(session, services, Caller(ACTOR, claimed.caller, frozenset()), new)
        prediction_id = new.id if changed else None
        studies.predicted(
            session, claimed, series=_series(conversion), assembled=assembled, prediction_id=prediction_id
        )
    if changed:
        services.metrics.add_upload(sum(each.bytes for each in inputs.values()))


def _digest(inputs: dict[str, str], clinical: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([inputs, clinical], sort_keys=True).encode()).hexdigest()


def _series(conversion: Conversion) -> Sequence[dict[str, Any]]:
    """The series with their UIDs, once for each UID."""
    return [
        each.model_dump(mode="json") | {"uid": uid}
        for each, uids in zip(conversion.series, conversion.series_uids, strict=True)
        for uid in uids
    ]
