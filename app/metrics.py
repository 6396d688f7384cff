"""The metrics for Prometheus; every metric of the product is named here.

With several processes the library keeps the values in files of `PROMETHEUS_MULTIPROC_DIR`, and any process can report them all.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

_FLUSH_S = 0.25

ENTRIES = Counter("adjourn_entries_total", "Entries accepted", ["result"])
RATE_LIMITED = Counter("adjourn_rate_limited_total", "Requests, and entries of batches, refused by a rate or a quota", ["rate"])
RATES_UNCHECKED = Counter("adjourn_rates_unchecked_total", "Slices of a rate given without Redis, which did not answer")
UNASSIGNED = Counter("adjourn_unassigned_entries_total", "Entries that belong to no session", ["reason"])
OPENED = Counter("adjourn_sessions_opened_total", "Sessions opened")
CLOSED = Counter("adjourn_sessions_closed_total", "Sessions closed", ["reason"])
CLOSE_LAG = Histogram(
    "adjourn_close_lag_seconds",
    "From a session's deadline to the commit that closed it",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 3600),
)
CONFLICTS = Counter("adjourn_commit_conflicts_total", "Commits that found another version and were decided again")
OPEN = Gauge("adjourn_sessions_open", "Sessions open now", multiprocess_mode="mostrecent")
BACKLOG = Gauge("adjourn_stream_backlog", "Event records not archived yet", multiprocess_mode="mostrecent")
OUTBOX = Gauge("adjourn_outbox_depth", "Deliveries waiting", multiprocess_mode="mostrecent")
ARCHIVED = Counter("adjourn_sessions_archived_total", "Sessions written to Postgres")
CONTINUATIONS = Counter(
    "adjourn_continuations_total", "Sessions made of messages that archived ones collected after a rollback of Redis"
)
REJECTED = Counter("adjourn_rejected_total", "Event records that were rejected because their data is bad")
FAILURES = Counter("adjourn_job_failures_total", "Runs of a worker's job that failed", ["job"])
DELIVERIES = Counter("adjourn_delivery_attempts_total", "Webhooks sent, by outcome", ["outcome"])
DELIVERY_LATENCY = Histogram(
    "adjourn_delivery_latency_seconds",
    "From an event to the first attempt to deliver it, without sandbox bots",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 3600),
)
DELIVERY_DURATION = Histogram(
    "adjourn_delivery_duration_seconds",
    "How long one attempt took",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15),
)
REQUEST_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
REQUESTS = Histogram(
    "adjourn_request_seconds",
    "From a request's head to the end of its answer",
    ["route", "method", "status"],
    buckets=REQUEST_BOUNDS_S,
)
RETENTION_DELETED = Counter("adjourn_retention_deleted_total", "Rows that were deleted by retention", ["table"])
RETENTION_DROPPED = Counter("adjourn_retention_months_total", "Months of a table that were dropped whole by retention")
REPAIRS = Counter("adjourn_repairs_total", "Repairs of the live state by the consistency check")
UNACCOUNTED = Gauge(
    "adjourn_unaccounted",
    "Sessions and event records that were counted and are lost: must be 0",
    multiprocess_mode="mostrecent",
)


class BufferedCounter:
    """Adds up what is counted with every entry: a counter with labels costs as much as a tenth of a decision.

    The counter has the sums a moment later, or at `flush`. Only for the thread of an event loop.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._sums: dict[str, int] = {}

    def add(self, label: str) -> None:
        sums = self._sums
        if not sums:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        sums[label] = sums.get(label, 0) + 1

    def flush(self) -> None:
        """Give the sums to the counter."""
        sums, self._sums = self._sums, {}
        for label, added in sums.items():
            self._counter.labels(label).inc(added)


ENTRIES_TAKEN = BufferedCounter(ENTRIES)


class BufferedHistogram:
    """A histogram for what happens with every request: see `BufferedCounter`."""

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._added: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def add(self, labels: tuple[str, ...], value: float) -> None:
        added = self._added
        if not added:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        of_labels = added.get(labels)
        if of_labels is None:
            of_labels = added[labels] = [0] * (len(self._bounds) + 1), [0.0]
        counts, total = of_labels
        counts[bisect_left(self._bounds, value)] += 1
        total[0] += value

    def flush(self) -> None:
        """Give the counts to the histogram, whose own `observe` takes one value at a time."""
        added, self._added = self._added, {}
        for labels, (counts, (total,)) in added.items():
            child: Any = self._histogram.labels(*labels)
            for bucket, count in zip(child._buckets, counts, strict=True):  # noqa: SLF001 - see above
                bucket.inc(count)
            child._sum.inc(total)  # noqa: SLF001


REQUESTS_ANSWERED = BufferedHistogram(REQUESTS, REQUEST_BOUNDS_S)


def flush() -> None:
    """Give everything that is buffered to the metrics."""
    ENTRIES_TAKEN.flush()
    REQUESTS_ANSWERED.flush()
