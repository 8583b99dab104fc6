"""Counters of the server, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgeglm.memory import current_rss, peak_rss
from edgeglm.runtimes.serve.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts requests, tokens and times of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("edgeglm_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.tokens = Counter("edgeglm_tokens", "Tokens by kind.", ["kind"], registry=self.registry)
        self.first = Histogram(
            "edgeglm_time_to_first_token_seconds", "From the request to its first token.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        gauges = {
            "edgeglm_requests_waiting": ("Requests that wait for the engine.", lambda: engine.waiting),
            "edgeglm_requests_running": ("Requests that the engine works on.", lambda: engine.running),
            "edgeglm_bundles_loaded": ("Bundles in memory.", lambda: len(engine.loaded)),
            "edgeglm_resident_bytes": ("Resident memory of the process.", current_rss),
            "edgeglm_resident_peak_bytes": ("Its peak.", peak_rss),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Count a response."""
        self.requests.labels(path, str(status)).inc()

    def spent(self, prompt: int, cached: int, generated: int) -> None:
        """Count the tokens of a request: of its prompt, those of them that were known, and of its answers."""
        for kind, count in (("prompt", prompt), ("cached", cached), ("generated", generated)):
            self.tokens.labels(kind).inc(count)

    def page(self) -> bytes:
        """Return the page."""
        return generate_latest(self.registry)
