"""Counters of the server, in Prometheus' form."""

from __future__ import annotations

from collections import Counter as Count
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgeglm.memory import current_rss, peak_rss
from edgeglm.runtimes.serve.schedule import WEIGHTS, Kind, Priority

if TYPE_CHECKING:
    from edgeglm.runtimes.serve.engine import Engine

REASONS = ("idle", "room", "session", "damage", "round", "error")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts requests, tokens and times of one server."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.registry = engine, CollectorRegistry()
        self.requests = Counter("edgeglm_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.tokens = Counter("edgeglm_tokens", "Tokens by kind.", ["kind"], registry=self.registry)
        self.first = Histogram(
            "edgeglm_time_to_first_token_seconds", "From the request to its first token.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.waits = Histogram(
            "edgeglm_wait_seconds", "From the request to its begin.", ["priority", "kind"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.displaced = Counter(
            "edgeglm_displaced", "Times that a request was set aside for one above it.", registry=self.registry
        )
        self.refused = Counter("edgeglm_refused", "Requests that found the queue full.", registry=self.registry)
        self.released = Counter(
            "edgeglm_released", "Bundles and sessions that were released, rounds of cleaning up, and errors in them.",
            ["reason"], registry=self.registry,
        )  # fmt: skip
        self._told = Count[str]()
        self.queue = Gauge("edgeglm_queue", "Requests that wait, by kind.", ["kind"], registry=self.registry)
        gauges = {
            "edgeglm_requests_waiting": ("Requests that wait for the engine.", lambda: len(engine.waiting)),
            "edgeglm_requests_running": ("Requests that the engine works on.", lambda: len(engine.running)),
            "edgeglm_requests_aside": (
                "Requests that are set aside.", lambda: sum(task.is_aside for task in engine.running)
            ),
            "edgeglm_pool_tokens": ("Tokens that all sequences may have.", engine.bundles.pool),
            "edgeglm_pool_taken_tokens": ("Tokens that requests have room for.", engine.bundles.taken),
            "edgeglm_pool_held_bytes": ("Buffers of keys and values.", engine.bundles.held),
            "edgeglm_sessions": ("Users' sessions.", lambda: len(engine.sessions)),
            "edgeglm_bundles_loaded": ("Bundles in memory.", lambda: len(engine.bundles.loaded)),
            "edgeglm_resident_bytes": ("Resident memory of the process.", current_rss),
            "edgeglm_resident_peak_bytes": ("Its peak.", peak_rss),
        }  # fmt: skip
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Count a response."""
        self.requests.labels(path, str(status)).inc()

    def begun(self, priority: Priority, kind: Kind, waited: float) -> None:
        """Count a request that the engine begins, after so many seconds."""
        self.waits.labels(priority, kind).observe(waited)

    def spent(self, prompt: int, cached: int, generated: int) -> None:
        """Count the tokens of a request: of its prompt, those of them that were known, and of its answers."""
        for kind, count in (("prompt", prompt), ("cached", cached), ("generated", generated)):
            self.tokens.labels(kind).inc(count)

    def page(self) -> bytes:
        """Return the page."""
        waiting = Count(job.claim.kind for job in self.engine.waiting)
        for kind in WEIGHTS:
            self.queue.labels(kind).set(waiting[kind])
        released = Count(self.engine.bundles.released)
        for reason in REASONS:
            self.released.labels(reason).inc(released[reason] - self._told[reason])
        self._told = released
        return generate_latest(self.registry)
