"""What happens between a received study and its place in the queue, apart from HTTP.

Notable choices:
- The volumes are durable before the rows are, and prediction, job, idempotency key and audit are one transaction: after
  a 2xx nothing can be lost, and before it nothing is half there.
- A refusal keeps nothing of the study, only the audit's note that a caller was refused, and why.
"""

from __future__ import annotations

import logging

from sqlalchemy.orm import Session

from app.api.dependencies import Services
from app.api.uploads import UploadedStudy, UploadReceiver
from app.core.tracing import TraceContext
from app.database import audit, idempotency, predictions
from app.database.api_keys import Caller
from app.database.idempotency import Reservation
from app.database.predictions import NewPrediction
from app.registry.manifest import Manifest
from app.registry.model_store import StoredVersion
from app.sdk.errors import (
    FieldError,
    IdempotencyKeyMissing,
    MissingInput,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    RlvoError,
)
from app.sdk.types import Input, ModelRef, Priority

log = logging.getLogger("rlvo.submission")

_MADE_FROM = {Input.VESSELS: Input.CTA, Input.TMAX: Input.CTP, Input.CBF: Input.CTP}
"""Inputs that the service makes itself where the other one was sent."""


async def reserve(services: Services, caller: Caller, key: str | None) -> Reservation | None:
    """Takes the caller's idempotency key before the body is read.

    :raises Draining, QueueFull, RequestInProgress, IdempotencyKeyMissing:
    """
    services.open_for_work()
    if key is None and services.settings.require_idempotency_key:
        raise IdempotencyKeyMissing("Send an Idempotency-Key header, a new one for each new study.")
    if await services.read(services.queue.depth) >= services.settings.queue_limit:
        raise QueueFull("The queue is full; send the study again in a moment.", retry_after=10)
    if key is None:
        return None
    lease = services.settings.receive_timeout + 60
    return await services.write(idempotency.reserve, caller.tenant, key, lease=lease, owner=services.owner)


async def accept(
    services: Services,
    caller: Caller,
    reception: UploadReceiver,
    reservation: Reservation | None,
    place: TraceContext,
    priority: Priority = Priority.ACUTE,
) -> tuple[str, bool]:
    """Keeps a checked study and queues the work on it.

    Returns the prediction's id, and whether an earlier request with the same key made it.

    :raises MissingInput: the model needs something that was not sent
    :raises IdempotencyKeyReused, RequestInProgress, ModelNotFound, ModelNotReady, StorageFull, DatabaseUnavailable:
    """
    if reservation and (earlier := reservation.replay(reception.digest)):
        return earlier, True
    entry = await services.work(_model, services, reception.study.model)
    check_needs(entry.manifest, reception.study)
    inputs = await services.work(reception.keep)
    new = NewPrediction(
        id=predictions.new_id(),
        caller=caller.tenant,
        model=ModelRef(name=entry.name, version=entry.version, digest=entry.digest),
        subject=reception.study.subject,
        explain=reception.study.explain,
        exact=reception.study.exact,
        clinical=reception.study.record.model_dump(mode="json", exclude_none=True),
        inputs=inputs,
        place=place,
        priority=priority,
        idempotency_key=reservation.key if reservation else None,
        body_digest=reception.digest,
        keep_key=services.settings.idempotency_hours * 3600,
    )
    await services.write(_enqueue, services, caller, new)
    services.metrics.stored(sum(summary.bytes for summary in inputs.values()))
    return new.id, False


async def refuse(services: Services, caller: Caller, reservation: Reservation | None, why: str, trace_id: str) -> None:
    """Gives the key back and notes the refusal. A database that is away is no reason for another error."""

    def note(session: Session) -> None:
        if reservation and reservation.token:
            idempotency.release(session, reservation)
        audit.append(session, caller.name, "prediction.refuse", trace_id, {"code": why})

    try:
        await services.write(note)
    except RlvoError as error:
        log.warning("a refusal could not be noted: %s", error.code)


def check_needs(manifest: Manifest, study: UploadedStudy) -> None:
    """Raises MissingInput, naming everything that the model version requires and was not sent."""
    sent = set(study.headers)
    volumes = [name for name in manifest.required_inputs if not {name, _MADE_FROM.get(name, name)} & sent]
    maps_sent = Input.CTP in sent or {Input.TMAX, Input.CBF} <= sent
    facts = [
        variable.name
        for variable in manifest.clinical.variables
        if variable.required
        and study.record.value(variable.name) is None
        and not (variable.name.startswith("perfusion.") and maps_sent)
    ]
    if volumes or facts:
        errors = [FieldError(name, "is required by this model") for name in volumes]
        errors += [FieldError(f"clinical.{name}", "is required by this model") for name in facts]
        raise MissingInput(f"The model needs {', '.join((*volumes, *facts))} as well.", errors=errors)


def _model(services: Services, reference: str | None) -> StoredVersion:
    try:
        return services.registry.resolve(reference or services.settings.default_model)
    except ModelNotFound:
        if reference is None:
            raise ModelNotReady("The service's default model is not in its model store.", retry_after=30) from None
        raise


def _enqueue(session: Session, services: Services, caller: Caller, new: NewPrediction) -> None:
    turn = predictions.add(session, new)
    services.queue.submit(session, new.id, priority=turn)
    detail = {
        "model": f"{new.model.name}@{new.model.version}",
        "inputs": {k.value: v.sha256 for k, v in new.inputs.items()},
    }
    audit.append(session, caller.name, "prediction.submit", new.id, detail)
