"""The real service, on uvloop: an archive of very many files does not hold its event loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.service import Service

FILES = 20_000  # without slices they hold the loop for half a second
SCRIPT = f"import os; os.mkdir('many'); [os.close(os.open(f'many/{{n}}', os.O_CREAT)) for n in range({FILES})]"


@pytest.mark.parametrize(("limit_ms", "is_told"), [("25", False), ("1", True)])
def test_archive_of_many_empty_files(tmp_path: Path, limit_ms: str, is_told: bool) -> None:
    """With a limit below a slice it is told: so it would be."""
    with Service(tmp_path, {"BULKHEAD_SLOW_CALLBACK_MS": limit_ms}) as service:
        sandbox = service.create()
        assert service.run(sandbox, "python3", "-c", SCRIPT)["exit"]["code"] == 0
        status, archive = service.call("GET", f"/sandboxes/{sandbox}/archive?path=many")
        assert status == 200
        assert len(archive) >= 512 * (FILES + 1 + 2)
    told = [place for event in _slow(service) for place in event["where"]]
    # Six calls are told, the innermost first: what reads the entries can hide what writes them. Where nothing may be
    # told only the writer is looked for: the reader gives the interpreter's lock back at each read, and the thread that
    # looks may miss all of these moments, which it takes for a slow callback.
    parts = ("app.core.tar", "app.backends.process.trees", "routes.archives") if is_told else ("app.core.tar",)
    assert any(part in place for place in told for part in parts) == is_told, told


def _slow(service: Service) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in service.log if line.startswith("{")]
    return [event for event in events if event["event"] == "slow_callback"]
