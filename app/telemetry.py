"""Logs as JSON lines, and metrics for Prometheus. The core reports through `Observer`, the API through `Journal`."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from app.core.errors import BulkheadError, CapacityExceeded
from app.core.models import SandboxState
from app.core.network_log import NetworkEvent
from app.core.sandboxes import Sandbox
from app.log_buffer import LogBuffer

# Create and start take 1 to 5 ms here; the upper end is for microVMs and for hosts in trouble.
LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5, 30)
QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
PATH_SHOWN = 512
NETWORK_REASONS = 64
_JSON = json.JSONEncoder(ensure_ascii=True, default=repr)  # `json.dumps` with a default makes an encoder for each line
disable_created_metrics()  # type: ignore[no-untyped-call]  # its package has no types here; a second series per counter, for a server that does not scrape: noise


class _ServerLog(logging.Handler):
    """What uvicorn says, as lines of our own log."""

    def __init__(self, log: Any) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, "server", detail=record.getMessage(), exc_info=record.exc_info)


class Telemetry:
    """One per application: its own registry of metrics, so that two in one process do not collide."""

    def __init__(
        self, *, stream: TextIO | None = None, level: int = logging.INFO, key_names: Mapping[str, str] | None = None
    ) -> None:
        """`key_names`: what to call a client in the log, by the SHA-256 of its key."""
        self._key_names = key_names or {}
        self._results: dict[str, tuple[bool, bool]] = {}  # of the last check of each runtime
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(stream or sys.stderr),  # a line is one write, also where nothing is buffered
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.MaybeTimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                # ASCII: control characters and anything that a terminal would obey leave as \\u escapes.
                structlog.processors.JSONRenderer(lambda event, **_: _JSON.encode(event)),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        ).bind()  # else it is put together anew for each line
        self.request_lines = LogBuffer()
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Callable[..., Counter]:
            """Returns the counter of some labels. The library's own `labels` looks it up in ten calls."""
            return cache(Counter(f"bulkhead_{name}", text, labels, registry=registry).labels)

        def histogram(name: str, text: str) -> Callable[[str], Histogram]:
            named = Histogram(f"bulkhead_{name}", text, ["runtime"], buckets=LATENCY_BUCKETS, registry=registry)
            return cache(named.labels)

        self._created = counter("sandboxes_created", "Sandboxes created", "runtime")
        self._ended = counter("sandboxes_ended", "Sandboxes that ended", "runtime", "reason")
        self._started = counter("executions_started", "Commands started", "runtime")
        self._finished = counter("executions_ended", "Commands that ended", "runtime", "reason")
        self._output = counter("output_bytes", "Bytes that ended executions printed", "runtime")
        self._streamed = counter("stream_bytes", "Bytes of output sent to streams", "runtime")
        self._requests = counter("requests", "Requests answered, by class of status", "status")
        for kind in range(1, 6):  # those that did not come yet are 0
            self._requests(f"{kind}xx")
        self._refused = counter(
            "capacity_refusals", "Requests refused because a budget, or a share of it, is used up", "budget", "holder"
        )
        self._connections = counter(
            "egress_connections", "Connections of sandboxes that ended or were refused", "runtime", "verdict"
        )
        self._network_bytes = counter(
            "egress_bytes",
            "Bytes of connections of sandboxes that ended, as their programs count",
            "runtime",
            "direction",
        )
        self._network_refused = counter(
            "egress_refusals",
            "Names, connections and requests of sandboxes that were refused",
            "runtime",
            "kind",
            "reason",
        )
        self._network_reasons: set[str] = set()
        self._create_seconds = histogram("sandbox_create_seconds", "Time from a create to a running sandbox")
        self._start_seconds = histogram("execution_start_seconds", "Time from a start to a running command")
        healthy = Gauge(
            "bulkhead_runtime_healthy", "1 while the runtime (its launcher) works", ["runtime"], registry=registry
        )
        self._healthy = healthy.labels

    def take_server_log(self) -> None:
        """Takes over the server's log, for the one service of this process."""
        logging.getLogger("uvicorn.error").handlers = [_ServerLog(self._log)]

    def watch(self, sandboxes: Iterable[Sandbox]) -> None:
        """Counts what is alive when the metrics are read."""
        self._registry.register(_Alive(sandboxes))

    def render(self) -> bytes:
        return generate_latest(self._registry)

    @property
    def log(self) -> Any:
        """The structured logger, for parts of the service that log at start and end."""
        return self._log

    def spill_failed(self, sandbox_id: str, error: OSError) -> None:
        """Called when output of a sandbox cannot be stored, or not be read back. That output is dropped."""
        self._log.error("spill_failed", sandbox=sandbox_id, reason=error.strerror or str(error))

    # --- Observer

    def sandbox_created(self, runtime: str, seconds: float) -> None:
        self._created(runtime).inc()
        self._create_seconds(runtime).observe(seconds)

    def sandbox_ended(self, runtime: str, reason: str) -> None:
        self._ended(runtime, reason).inc()

    def execution_started(self, runtime: str, seconds: float) -> None:
        self._started(runtime).inc()
        self._start_seconds(runtime).observe(seconds)

    def execution_ended(self, runtime: str, reason: str, output_bytes: int) -> None:
        self._finished(runtime, reason).inc()
        self._output(runtime).inc(output_bytes)

    # --- the egress process

    def network_event(self, runtime: str, event: NetworkEvent) -> None:
        """Names of hosts are in no metric. The reasons come from a process that strangers talk to, so they are
        bounded."""
        if event.kind == "connection":
            self._connections(runtime, event.verdict).inc()
        self._network_bytes(runtime, "sent").inc(event.bytes_sent)
        self._network_bytes(runtime, "received").inc(event.bytes_received)
        if event.verdict != "allowed":
            reason = event.reason or "other"
            if reason not in self._network_reasons and len(self._network_reasons) >= NETWORK_REASONS:
                reason = "other"
            self._network_reasons.add(reason)
            self._network_refused(runtime, event.kind, reason).inc()

    # --- the API

    def streamed(self, runtime: str, count: int) -> None:
        self._streamed(runtime).inc(count)

    def runtime_ready(self, runtime: str, error: BulkheadError | None, limitation: BulkheadError | None = None) -> None:
        """Called after each check of a runtime. Logs a line when the result has changed. `limitation` says
        what it cannot do although it works, such as serve requests that do not name their storage."""
        self._healthy(runtime).set(error is None)
        why = error or limitation
        result = error is None, why is None
        if self._results.get(runtime) != result:
            say = self._log.info if why is None else self._log.warning
            say("runtime", runtime=runtime, available=error is None, reason=None if why is None else str(why))
        self._results[runtime] = result

    def request(
        self, *, request_id: str, method: str, path: str, status: int, seconds: float, client: str | None, key: str
    ) -> None:
        self._requests(f"{status // 100}xx").inc()
        say = self._log.debug if path in QUIET_PATHS and status < 400 else self._log.info
        self.request_lines.add(
            say,
            "request",
            request_id=request_id,
            method=method,
            path=path[:PATH_SHOWN],
            status=status,
            ms=round(seconds * 1000, 3),
            client=client,
            key=self._key_names.get(key),
            timestamp=datetime.now(UTC).isoformat().replace("+00:00", "Z"),  # it is written later
        )

    def refused(self, error: Exception) -> None:
        if isinstance(error, CapacityExceeded):
            self._refused(error.budget, error.holder).inc()

    def slow_callback(self, ms: float, where: list[str]) -> None:
        self._log.warning("slow_callback", ms=ms, where=where)

    def failure(self, *, request_id: str, error: BaseException) -> None:
        self._log.error("fault", request_id=request_id, exc_info=error)


class _Alive:
    def __init__(self, sandboxes: Iterable[Sandbox]) -> None:
        self._sandboxes = sandboxes

    def collect(self) -> Iterator[Metric]:
        rooms: Tally[tuple[str, str]] = Tally()
        running: Tally[str] = Tally()
        for sandbox in self._sandboxes:
            runtime = sandbox.spec.runtime
            rooms[runtime, str(sandbox.state)] += 1
            if sandbox.state in {SandboxState.RUNNING, SandboxState.PAUSED}:
                running[runtime] += sandbox.running
        yield _family("bulkhead_sandboxes", "Sandboxes by state", ["runtime", "state"], rooms.items())
        yield _family(
            "bulkhead_executions_running",
            "Commands running now",
            ["runtime"],
            (((runtime,), count) for runtime, count in running.items()),
        )


def _family(
    name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], int]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, count in values:
        family.add_metric(list(key), count)
    return family
