"""Turns a received study into a queued prediction, or records its refusal.

Design notes:
- The volumes are stored before the rows are written.
- Prediction, job, idempotency key and audit entry are one transaction, so a 2xx response cannot lose a study.
- The places in the queue are counted before the body is read, and again in that transaction, which decides.
- After a refusal, only the audit entry with the reason remains.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.api.dependencies import Services
from app.api.uploads import UploadedStudy, UploadReceiver
from app.core.tracing import TraceContext
from app.database import audit, idempotency, predictions, queue_limits, trials
from app.database.api_keys import Caller
from app.database.idempotency import Reservation
from app.database.predictions import NewPrediction
from app.database.queue_limits import QueueLimits
from app.database.trials import Trial
from app.dicom.return_address import seal
from app.inference import own_variables
from app.registry.aliases import alias_of_tenant
from app.registry.manifest import Manifest
from app.registry.model_store import StoredVersion
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import (
    DatabaseUnavailable,
    FieldError,
    IdempotencyKeyMissing,
    MissingInput,
    ModelNotFound,
    ModelNotReady,
    RlvoError,
    Sealed,
)
from app.sdk.types import Input, ModelRef, Priority

log = logging.getLogger("rlvo.submission")

_DERIVED_FROM = {Input.VESSELS: Input.CTA, Input.TMAX: Input.CTP, Input.CBF: Input.CTP}  # computed input: its source


async def reserve(
    services: Services, caller: Caller, key: str | None, priority: Priority = Priority.ACUTE
) -> Reservation | None:
    """Reserves the caller's idempotency key, if there is one, before the body is read.

    A key of an accepted study needs no place in the queue.

    Raises:
        Draining: The service is shutting down.
        QueueFull: The queue has no place for a study of this tenant and priority.
        RequestInProgress: Another request with this key is being received.
        IdempotencyKeyMissing: The settings require a key, and none was sent.
    """
    services.raise_if_draining()
    if key is None and services.settings.require_idempotency_key:
        raise IdempotencyKeyMissing("Send an Idempotency-Key header, with a new value for each study.")
    limits = QueueLimits.of(services.settings)
    if key is None:
        await services.read(queue_limits.check, limits, caller.tenant, priority)
        return None
    if unreleased := set(services.unreleased):
        await services.write(_release, unreleased)
        services.unreleased -= unreleased
    token = secrets.token_hex(16)

    def record(session: Session) -> Reservation:
        lease, owner = services.held_keys.lease, services.owner
        reservation = idempotency.reserve(session, caller.tenant, key, lease=lease, owner=owner, token=token)
        if reservation.prediction_id is None:
            queue_limits.check(session, limits, caller.tenant, priority)
        return reservation

    try:
        reservation = await services.write(record)
    except DatabaseUnavailable:  # the connection may have been lost after the commit
        services.unreleased.add(Reservation(caller.tenant, key, token))
        raise
    if reservation.token:
        services.held_keys.add(reservation.token)
    return reservation


async def accept(
    services: Services,
    caller: Caller,
    upload: UploadReceiver,
    reservation: Reservation | None,
    trace_context: TraceContext,
    priority: Priority = Priority.ACUTE,
) -> tuple[str, bool]:
    """Stores a checked study and queues its prediction.

    Returns:
        The id of the prediction, and whether an earlier request with the same key created it.

    Raises:
        InvalidClinical: An own variable has no valid value, or no version has a variable of this name.
        MissingInput: The model requires an input that was not sent.
        IdempotencyKeyReused: The key was used with another body.
        ModelNotFound: There is no such model version.
        ModelNotReady: The default model is not in the model store.
        QueueFull: Other studies have taken the last place while this one was received.
        Sealed: A silent trial runs at this site, and forbids answers of the version that the study names.
        StorageFull: The volumes cannot be stored.
    """
    study = upload.study
    key = services.return_key
    if reservation and (earlier := reservation.replay(upload.digest)):
        return earlier, True
    running = await services.read(trials.running_at, caller.tenant)
    entry = await services.run_in_thread(resolve_model, services, study.model, caller.tenant, running)
    await services.run_in_thread(check_own_values, services, entry.manifest, study.record)
    check_required_inputs(entry.manifest, study)
    inputs = await services.run_in_thread(upload.commit)
    new = NewPrediction(
        id=predictions.new_id(),
        caller=caller.tenant,
        model=ModelRef(name=entry.name, version=entry.version, digest=entry.digest),
        subject=study.subject,
        study_instance_uid=study.study_instance_uid,
        accession_number=study.accession_number,
        explain=study.explain,
        exact=study.exact,
        accept_warnings=study.accept_warnings,
        ctp_interval_s=study.ctp_interval_s,
        series=study.series,
        intake_flags=study.flags,
        clinical=study.record.model_dump(mode="json", exclude_none=True),
        inputs=inputs,
        trace_context=trace_context,
        priority=priority,
        idempotency_key=reservation.key if reservation else None,
        body_digest=upload.digest,
        keep_key=services.settings.idempotency_hours * 3600,
        return_address=seal(study.address, key) if study.address and key else None,
    )
    await services.write(enqueue, services, caller, new)
    services.metrics.add_upload(sum(summary.bytes for summary in inputs.values()))
    return new.id, False


async def refuse(services: Services, caller: Caller, reservation: Reservation | None, code: str, trace_id: str) -> None:
    """Releases the idempotency key and writes the audit entry; a database error is logged, not raised.

    If the database is away, the key is released by the next request that reserves one.
    """

    def record(session: Session) -> None:
        if reservation and reservation.token:
            idempotency.release(session, reservation)
        audit.append(session, caller.name, "prediction.refuse", trace_id, {"code": code})

    try:
        await services.write(record)
    except RlvoError as error:
        if reservation and reservation.token:
            services.unreleased.add(reservation)
        log.warning("the audit entry of a refusal could not be written: %s", error.code)


def _release(session: Session, reservations: set[Reservation]) -> None:
    for reservation in reservations:
        idempotency.release(session, reservation)


def check_own_values(services: Services, manifest: Manifest, record: ClinicalRecord) -> None:
    """Checks the own variables of a record against the version that reads it.

    A name that only another version of the store declares is not refused: the answer says that it was not used.

    Raises:
        InvalidClinical: A value is not valid, or no version has a variable of this name.
    """
    if record.own is None:
        return
    store = services.registry
    others = (entry.manifest.clinical for name in store.names() for entry in store.versions(name))
    own_variables.check_record(record, manifest.clinical, others)


async def check_stored_record(services: Services, caller: Caller, record: ClinicalRecord) -> None:
    """Checks the own variables of a record that is stored for a study, against the version that would read it now.

    The version is resolved again when the study is complete. Without a version nothing is checked yet.

    Raises:
        InvalidClinical: See ``check_own_values``.
    """
    if record.own is None:
        return
    running = await services.read(trials.running_at, caller.tenant)
    try:
        entry = await services.run_in_thread(resolve_model, services, None, caller.tenant, running)
    except (ModelNotReady, Sealed):
        return
    await services.run_in_thread(check_own_values, services, entry.manifest, record)


def check_required_inputs(manifest: Manifest, study: UploadedStudy) -> None:
    """Raises MissingInput with the names of all inputs that the model version requires and that were not sent."""
    sent = set(study.headers)
    volumes = [name for name in manifest.required_inputs if not {name, _DERIVED_FROM.get(name, name)} & sent]
    maps_sent = Input.CTP in sent or {Input.TMAX, Input.CBF} <= sent
    variables = [
        variable.name
        for variable in manifest.clinical.variables
        if variable.required
        and study.record.value(variable.name) is None
        and not (variable.name.startswith("perfusion.") and maps_sent)
    ]
    if volumes or variables:
        errors = [FieldError(name, "is required by this model") for name in volumes]
        errors += [FieldError(f"clinical.{name}", "is required by this model") for name in variables]
        raise MissingInput(f"The model also requires: {', '.join((*volumes, *variables))}.", errors=errors)


def resolve_model(services: Services, reference: str | None, tenant: str, running: Sequence[Trial]) -> StoredVersion:
    """The model version of a reference; without one, that of the default model for this tenant.

    An alias ``site-TENANT`` of the default model (`alias_of_tenant`) chooses the version of a tenant, such as one with
    the calibration of its patients. A silent trial of the site, one of the ``running`` ones, chooses its own version
    instead.

    Raises:
        ModelNotFound: There is no such version.
        ModelNotReady: The default model, or the version of the silent trial, is not in the model store.
        Sealed: A silent trial of the site forbids answers of this version.
    """
    chosen = trials.pinned(running, reference) or reference
    try:
        entry = services.registry.resolve(chosen or _of_tenant(services, tenant))
    except ModelNotFound:
        if chosen is None:
            raise ModelNotReady("The default model of the service is not in its model store.", retry_after=30) from None
        if chosen != reference:
            raise ModelNotReady("The version of the silent trial is not in the model store.", retry_after=30) from None
        raise
    trials.seals(running, ModelRef(name=entry.name, version=entry.version, digest=entry.digest))  # before it is stored
    return entry


def _of_tenant(services: Services, tenant: str) -> str:
    """Reference of the default model, by the alias of the tenant if it has one and the settings name no version."""
    default = services.settings.default_model
    alias = alias_of_tenant(tenant)
    return f"{default}@{alias}" if "@" not in default and alias in services.registry.aliases(default) else default


def enqueue(session: Session, services: Services, caller: Caller, new: NewPrediction) -> None:
    """Adds a prediction, its job and its audit entry in this transaction. Raises QueueFull."""
    queue_limits.admit(session, QueueLimits.of(services.settings), caller.tenant, new.priority)
    added = predictions.add(session, new)
    services.queue.submit(session, new.id, priority=added.queue_position)
    detail: dict[str, Any] = {
        "model": f"{new.model.name}@{new.model.version}",
        "inputs": {k.value: v.sha256 for k, v in new.inputs.items()},
    }
    if new.accept_warnings:
        detail["accept_warnings"] = True
    if new.ctp_interval_s is not None:
        detail["ctp_interval_s"] = new.ctp_interval_s
    if added.trial is not None:
        detail["trial"] = added.trial
    audit.append(session, caller.name, "prediction.submit", new.id, detail)
