"""Collects the metrics of the service and renders them for Prometheus.

Design notes:
- Each service has a separate registry, so that two services in one process (the tests) do not mix.
- Requests are counted by route template, because a path is free text from the caller.
- The stage times come from the prediction rows, so they cover all workers on all machines.
- Two scrapes overlap by `OVERLAP`, for rows that are committed late; `_observed` prevents counting a row twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from app.database.session import now
from app.database.status import FinishedPrediction, QueueWait
from app.database.workers import Usage, WorkerRecord
from app.sdk.deliveries import CommitmentState, DeliveryState
from app.sdk.types import Priority

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OVERLAP = timedelta(minutes=1)
Queued = Mapping[Priority, QueueWait]
Waiting = Mapping[str, QueueWait]  # by reason

_QUICK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics that /metrics shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._histogram(
            "rlvo_http_request_seconds",
            "Seconds from the request headers to the end of the response",
            _QUICK,
            *("method", "route", "status"),
        )
        self._in_flight = self._gauge("rlvo_http_requests_in_flight", "Requests in progress")
        self._received = Counter("rlvo_upload_bytes", "Bytes of volumes stored", registry=self._registry)
        self._depth = self._gauge("rlvo_queue_depth", "Predictions that wait for a worker", "priority")
        self._oldest = self._gauge("rlvo_queue_oldest_seconds", "Longest present waiting time", "priority")
        self._waiting = self._gauge(
            "rlvo_predictions_waiting", "Accepted predictions that wait until a fault of the environment ends", "reason"
        )
        self._waiting_longest = self._gauge(
            "rlvo_predictions_waiting_seconds",
            "Longest present time of such a prediction since its first fault",
            "reason",
        )
        self._deliveries = self._gauge(
            "rlvo_dicom_deliveries", "Deliveries of results to DICOM destinations, by state", "state"
        )
        self._commitments = self._gauge(
            "rlvo_dicom_commitments", "Delivered results by what the archive says of their storage", "state"
        )
        self._workers = self._gauge("rlvo_workers_live", "Workers with a recent heartbeat")
        labels = ("worker", "device")
        self._resident = self._gauge("rlvo_worker_memory_bytes", "Resident memory of a worker process", *labels)
        self._weights = self._gauge("rlvo_worker_weights_bytes", "Size of the weights loaded by a worker", *labels)
        self._versions = self._gauge("rlvo_worker_versions_loaded", "Model versions loaded by a worker", *labels)
        self._device_used = self._gauge("rlvo_device_memory_used_bytes", "GPU memory in use, of a worker", *labels)
        self._device_total = self._gauge("rlvo_device_memory_bytes", "Total GPU memory of a worker", *labels)
        self._waited = self._histogram("rlvo_queue_wait_seconds", "Seconds from acceptance to the start of work", _SLOW)
        self._finished = Counter("rlvo_predictions", "Finished predictions", ("status",), registry=self._registry)
        self._stages = self._histogram("rlvo_stage_seconds", "Seconds of each stage of a prediction", _SLOW, "stage")
        self._durations = self._histogram("rlvo_prediction_seconds", "Seconds from acceptance to result", _SLOW)
        self._observed: dict[str, datetime] = {}
        self.since = now()

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(name, description, labels, registry=self._registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, description, labels, buckets=buckets, registry=self._registry)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts the block as a request in progress."""
        with self._in_flight.track_inprogress():
            yield

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one finished request."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def add_upload(self, size: int) -> None:
        """Adds ``size`` bytes of stored volumes."""
        self._received.inc(size)

    def observe_finished(self, finished: Iterable[FinishedPrediction]) -> None:
        """Counts the predictions that finished after ``since``, each one once."""
        for each in finished:
            if each.id in self._observed:
                continue
            self._observed[each.id] = each.finished
            self._finished.labels(each.status).inc()
            self._durations.observe((each.finished - each.created).total_seconds())
            if each.waited is not None:
                self._waited.observe(each.waited)
            for stage, seconds in each.seconds.items():
                self._stages.labels(stage).observe(seconds)
        self.since = max([self.since, *(time - OVERLAP for time in self._observed.values())])
        self._observed = {each: time for each, time in self._observed.items() if time >= self.since}

    def render(
        self,
        *,
        queued: Queued,
        waiting: Waiting,
        workers: Sequence[WorkerRecord],
        deliveries: Mapping[DeliveryState, int] | None = None,
        commitments: Mapping[CommitmentState, int] | None = None,
    ) -> bytes:
        """Returns the metrics in the Prometheus text format."""
        for state, count in (deliveries or {}).items():
            self._deliveries.labels(state).set(count)
        for said, count in (commitments or {}).items():
            self._commitments.labels(said).set(count)
        for reason, each in waiting.items():
            self._waiting.labels(reason).set(each.count)
            self._waiting_longest.labels(reason).set(each.oldest)
        for priority, wait in queued.items():
            self._depth.labels(priority).set(wait.count)
            self._oldest.labels(priority).set(wait.oldest)
        self._workers.set(len(workers))
        gauges = (self._resident, self._weights, self._versions, self._device_used, self._device_total)
        for gauge in gauges:
            gauge.clear()  # removes the values of workers that have stopped
        for worker in workers:
            usage = worker.usage or Usage(0, 0)
            values = (usage.resident, usage.weights, len(worker.models), usage.device_used, usage.device_whole)
            for gauge, value in zip(gauges, values, strict=True):
                gauge.labels(worker.id, worker.device).set(value)
        return generate_latest(self._registry)
