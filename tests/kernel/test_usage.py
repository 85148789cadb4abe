"""The figures of `GET …/usage` are the kernel's, for a sandbox and for one execution."""

from __future__ import annotations

import time
from typing import Any

from tests.kernel import host
from tests.kernel.talk import start
from tests.service import Service

MIB = 1 << 20
# Holds 40 MiB of memory and 30 more descriptors, has a second thread, and has written a file of 8 MiB.
BUSY = """
import os, threading, time
held = bytearray(os.urandom(1 << 20) * 40)
files = [os.open('/dev/null', os.O_RDONLY) for _ in range(30)]
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
open('big', 'wb').write(bytes(8 << 20))
end = time.process_time() + 0.2
while time.process_time() < end: pass
print('ready', flush=True)
time.sleep(600)
"""


def usage(service: Service, path: str) -> dict[str, Any]:
    status, found = service.call("GET", f"{path}/usage")
    assert status == 200, found
    return dict(found)


def test_figures_are_those_of_what_runs(service: Service) -> None:
    sandbox = service.create()
    path = f"/sandboxes/{sandbox}"
    before = usage(service, path)
    assert (before["processes"], before["open_files"], before["disk_bytes"]) == (0, 0, 0)
    began = time.monotonic()
    busy = start(service, sandbox, "python3", "-c", BUSY)
    other = start(service, sandbox, "sleep", "600")
    busy.saw(b"ready\n")
    whole, one, small = usage(service, path), usage(service, busy.path), usage(service, other.path)
    assert (one["processes"], small["processes"], whole["processes"]) == (2, 1, 3)
    assert one["open_files"] == 33
    assert small["open_files"] == 3
    assert whole["open_files"] == 36
    assert 48 * MIB < one["memory_bytes"] < 120 * MIB
    assert one["memory_bytes"] <= one["memory_peak_bytes"] <= whole["memory_peak_bytes"]
    assert 0.2 <= one["cpu_seconds"] < time.monotonic() - began + 0.2, "it may use one processor"
    assert one["cpu_seconds"] <= whole["cpu_seconds"]
    assert small["memory_bytes"] < 8 * MIB
    assert (whole["disk_bytes"], one["disk_bytes"]) == (8 * MIB, None)
    service.call("DELETE", busy.path)
    host.until(lambda: usage(service, path)["processes"] == 1, "what was killed is reaped")
    assert usage(service, busy.path)["memory_bytes"] == 0
    service.call("DELETE", path)


def test_paused_sandbox_tells_all_but_its_disk(service: Service) -> None:
    sandbox = service.create()
    path = f"/sandboxes/{sandbox}"
    start(service, sandbox, "sleep", "600")
    assert service.call("POST", f"{path}/pause")[0] == 200
    found = usage(service, path)
    assert (found["processes"], found["disk_bytes"]) == (1, None)
    service.call("DELETE", path)


def test_sandbox_that_has_no_process_left_to_start_is_told_without_its_disk(service: Service) -> None:
    sandbox = service.create(limits={"processes": 1})
    running = start(service, sandbox, "sleep", "600")
    found = usage(service, f"/sandboxes/{sandbox}")
    assert (found["processes"], found["disk_bytes"]) == (1, None)
    assert usage(service, running.path)["processes"] == 1
    service.call("DELETE", f"/sandboxes/{sandbox}")
