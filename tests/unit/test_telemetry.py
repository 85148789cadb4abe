"""What the operator reads in the log."""

from __future__ import annotations

import io
import json

from app.core.errors import BackendUnavailable
from app.telemetry import Telemetry


def test_a_runtime_that_goes_and_comes_back_is_told_once_each() -> None:
    stream = io.StringIO()
    telemetry = Telemetry(stream=stream)
    gone = BackendUnavailable("boxlite", "nobody answers")
    for error in (None, None, gone, gone, None):
        telemetry.runtime_ready("boxlite", error)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["runtime"], line["available"], line["reason"]) for line in lines] == [
        ("runtime", "boxlite", True, None),
        ("runtime", "boxlite", False, "nobody answers"),
        ("runtime", "boxlite", True, None),
    ]
    assert [line["level"] for line in lines] == ["info", "warning", "info"]
