"""The service's figures, in Prometheus' own words: seconds, bytes, counters that only grow.

Notable choices:
- A registry of its own, not the process-wide one: two services in one process (the tests) do not mix.
- Requests are counted by route template; a path is what a caller typed, and could be anything.
- The stages' seconds come from the predictions' rows, so they cover every worker on every machine. Each row is observed
  once: scrapes overlap by a minute, for rows whose transaction ended late, and remember what they have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from app.database.session import now
from app.database.status import FinishedPrediction, Waiting
from app.database.workers import Usage, WorkerRecord
from app.sdk.types import Priority

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OVERLAP = timedelta(minutes=1)
Queued = Mapping[Priority, Waiting]

_QUICK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """Everything that /metrics shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "rlvo_http_request_seconds",
            "Seconds from a request's headers to the end of its answer",
            ("method", "route", "status"),
            buckets=_QUICK,
            registry=self._registry,
        )
        self._in_flight = Gauge("rlvo_http_requests_in_flight", "Requests being answered", registry=self._registry)
        self._received = Counter("rlvo_upload_bytes", "Bytes of volumes stored", registry=self._registry)
        self._depth = self._gauge("rlvo_queue_depth", "Predictions that wait for a worker", "priority")
        self._oldest = self._gauge("rlvo_queue_oldest_seconds", "How long the first of them has waited", "priority")
        self._workers = Gauge("rlvo_workers_live", "Workers that gave a sign of life", registry=self._registry)
        who = ("worker", "device")
        self._resident = self._gauge("rlvo_worker_memory_bytes", "Memory that a worker's process holds", *who)
        self._weights = self._gauge("rlvo_worker_weights_bytes", "Weights that a worker keeps loaded", *who)
        self._versions = self._gauge("rlvo_worker_versions_loaded", "Model versions that a worker keeps loaded", *who)
        self._device_used = self._gauge("rlvo_device_memory_used_bytes", "A worker's GPU: memory in use", *who)
        self._device_whole = self._gauge("rlvo_device_memory_bytes", "A worker's GPU: memory in all", *who)
        self._waited = Histogram(
            "rlvo_queue_wait_seconds", "Seconds from acceptance to a worker", buckets=_SLOW, registry=self._registry
        )
        self._done = Counter("rlvo_predictions", "Predictions that ended, by how", ("status",), registry=self._registry)
        self._stages = Histogram(
            "rlvo_stage_seconds",
            "Seconds of each stage of a prediction",
            ("stage",),
            buckets=_SLOW,
            registry=self._registry,
        )
        self._whole = Histogram(
            "rlvo_prediction_seconds", "Seconds from acceptance to result", buckets=_SLOW, registry=self._registry
        )
        self._seen: dict[str, datetime] = {}
        self.since = now()

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, registry=self._registry)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        with self._in_flight.track_inprogress():
            yield

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).observe(seconds)

    def stored(self, size: int) -> None:
        self._received.inc(size)

    def ended(self, done: Iterable[FinishedPrediction]) -> None:
        """Observes what `observing.done_since` gave for ``since``, each prediction once."""
        for each in done:
            if each.id in self._seen:
                continue
            self._seen[each.id] = each.finished
            self._done.labels(each.status).inc()
            self._whole.observe((each.finished - each.created).total_seconds())
            if each.waited is not None:
                self._waited.observe(each.waited)
            for stage, seconds in each.seconds.items():
                self._stages.labels(stage).observe(seconds)
        self.since = max([self.since, *(moment - OVERLAP for moment in self._seen.values())])
        self._seen = {seen: moment for seen, moment in self._seen.items() if moment >= self.since}

    def page(self, *, waiting: Queued, workers: Sequence[WorkerRecord]) -> bytes:
        """The text that a scrape gets."""
        for priority, queued in waiting.items():
            self._depth.labels(priority).set(queued.count)
            self._oldest.labels(priority).set(queued.oldest)
        self._workers.set(len(workers))
        gauges = (self._resident, self._weights, self._versions, self._device_used, self._device_whole)
        for gauge in gauges:
            gauge.clear()  # a worker that is gone leaves no figures behind
        for worker in workers:
            usage = worker.usage or Usage(0, 0)
            values = (usage.resident, usage.weights, len(worker.models), usage.device_used, usage.device_whole)
            for gauge, value in zip(gauges, values, strict=True):
                gauge.labels(worker.id, worker.device).set(value)
        return generate_latest(self._registry)
