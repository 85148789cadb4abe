"""What the operator reads in the log."""

from __future__ import annotations

import io
import json

from app.core.errors import BackendUnavailable, BoundExceeded, CapacityExceeded
from app.core.network_log import NetworkEvent, NetworkVerdict
from app.telemetry import NETWORK_REASONS, Telemetry


def test_a_runtime_that_goes_and_comes_back_is_told_once_each() -> None:
    stream = io.StringIO()
    telemetry = Telemetry(stream=stream)
    gone, lacks = BackendUnavailable("boxlite", "nobody answers"), BackendUnavailable("boxlite", "no disks")
    for error in (None, None, gone, gone, None):
        telemetry.runtime_ready("boxlite", error)
    for error, limitation in ((None, lacks), (None, lacks), (gone, lacks), (None, lacks)):
        telemetry.runtime_ready("boxlite", error, limitation)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["runtime"], line["available"], line["reason"]) for line in lines] == [
        ("runtime", "boxlite", True, None),
        ("runtime", "boxlite", False, "nobody answers"),
        ("runtime", "boxlite", True, None),
        ("runtime", "boxlite", True, "no disks"),
        ("runtime", "boxlite", False, "nobody answers"),
        ("runtime", "boxlite", True, "no disks"),
    ]
    assert [line["level"] for line in lines] == ["info", "warning", "info", "warning", "warning", "warning"]


def test_budget_that_tells_what_happened_is_counted_under_its_name_alone() -> None:
    telemetry = Telemetry(stream=io.StringIO())
    for sentence in ("Too many open files", "Cannot allocate memory"):
        telemetry.refused(CapacityExceeded("processes", holder="sandbox", detail=sentence))
    telemetry.refused(BoundExceeded("entries in one archive", 1, "send less"))
    telemetry.refused(BackendUnavailable("boxlite", "nobody answers"))
    lines = [line for line in telemetry.render().decode().splitlines() if line.startswith("bulkhead_capacity_ref")]
    assert lines == ['bulkhead_capacity_refusals_total{budget="processes",holder="sandbox"} 2.0']


def test_output_that_the_disk_does_not_take_is_one_line_with_its_sandbox() -> None:
    stream = io.StringIO()
    Telemetry(stream=stream).spill_failed("s1", PermissionError(13, "Permission denied"))
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["event"], line["level"], line["sandbox"], line["reason"]) == (
        "spill_failed", "error", "s1", "Permission denied",
    )  # fmt: skip


def test_a_line_of_the_log_is_one_write() -> None:
    """Two would let a line of another process come between, and wake whoever reads the log twice."""
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return super().write(text)

    Telemetry(stream=Stream()).spill_failed("s1", PermissionError(13, "Permission denied"))
    assert [text[-1] for text in writes] == ["\n"]


def egress_lines(telemetry: Telemetry) -> list[str]:
    return [line for line in telemetry.render().decode().splitlines() if line.startswith("bulkhead_egress")]


def test_connections_and_refusals_of_sandboxes_are_counted_without_names_of_hosts() -> None:
    telemetry = Telemetry(stream=io.StringIO())
    ends: list[tuple[NetworkVerdict, str | None]] = [("allowed", None), ("allowed", "idle"), ("refused", "private")]
    for verdict, reason in ends:
        event = NetworkEvent(1.0, "connection", "secret.example.org", "10.0.0.1", 443, verdict, None, reason, 5, 7, 0.1)
        telemetry.network_event("process", event)
    telemetry.network_event(
        "process", NetworkEvent(1.0, "name", "secret.example.org", None, None, "refused", None, "not_allowed")
    )
    assert egress_lines(telemetry) == [
        'bulkhead_egress_connections_total{runtime="process",verdict="allowed"} 2.0',
        'bulkhead_egress_connections_total{runtime="process",verdict="refused"} 1.0',
        'bulkhead_egress_bytes_total{direction="sent",runtime="process"} 15.0',
        'bulkhead_egress_bytes_total{direction="received",runtime="process"} 21.0',
        'bulkhead_egress_refusals_total{kind="connection",reason="private",runtime="process"} 1.0',
        'bulkhead_egress_refusals_total{kind="name",reason="not_allowed",runtime="process"} 1.0',
    ]


def test_an_egress_process_cannot_fill_the_metrics_with_reasons() -> None:
    telemetry = Telemetry(stream=io.StringIO())
    for number in range(10 * NETWORK_REASONS):
        event = NetworkEvent(1.0, "connection", None, None, 443, "refused", None, f"made up {number}")
        telemetry.network_event("process", event)
    refusals = [line for line in egress_lines(telemetry) if "refusals" in line]
    assert len(refusals) == NETWORK_REASONS + 1
    assert f'reason="other",runtime="process"}} {9 * NETWORK_REASONS}.0' in refusals[-1]
