"""Where the tests of this folder run: the real process runtime, boxes of the double, real microVMs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernel.talk import Running, start
from tests.service import PROJECT, Service

IMAGE = {"busybox": {"rootfs_path": "/images/busybox"}}


@dataclass(frozen=True)
class Place:
    name: str
    service: Service
    runtime: str
    capabilities: frozenset[str]

    def create(self, **body: Any) -> str:
        limits = {"memory_mib": 128}
        status, answer = self.service.call(
            "POST", "/sandboxes?wait_seconds=120", {"runtime": self.runtime, "limits": limits, **body}, timeout=150
        )
        assert status == 201, answer
        assert answer["state"] == "running", answer
        return str(answer["id"])

    def show(self, sandbox: str) -> dict[str, Any]:
        status, answer = self.service.call("GET", f"/sandboxes/{sandbox}")
        assert status == 200, answer
        return dict(answer)

    def delete(self, sandbox: str) -> None:
        status, answer = self.service.call("DELETE", f"/sandboxes/{sandbox}", timeout=150)
        assert status == 204, answer

    def start(self, sandbox: str, *command: str, **body: Any) -> Running:
        return start(self.service, sandbox, *command, **body)

    def promises(self, capability: str) -> bool:
        return capability in self.capabilities


def place_of(name: str, service: Service, runtime: str) -> Place:
    status, answer = service.call("GET", "/runtimes")
    assert status == 200, answer
    (found,) = [item for item in answer["items"] if item["name"] == runtime]
    assert found["available"], found
    return Place(name, service, runtime, frozenset(found["capabilities"]))


def boxlite_environment(url: str, key: str, **more: str) -> dict[str, str]:
    return {
        "BULKHEAD_BOXLITE__URL": url,
        "BULKHEAD_BOXLITE__API_KEY": key,
        "BULKHEAD_BOXLITE__IMAGES": json.dumps(IMAGE),
        "BULKHEAD_BOXLITE__DEFAULT_IMAGE": "busybox",
        "BULKHEAD_BOXLITE__BOOTS": "1",  # the machine has one virtual cpu
        "BULKHEAD_PROCESS__ENABLED": "false",
        "BULKHEAD_RUNTIME": "boxlite",
        **more,
    }


@contextlib.contextmanager
def double_program(key: str = "test-key") -> Iterator[str]:
    """The double as a process of its own: its address."""
    double = subprocess.Popen(
        [sys.executable, "-m", "tests.boxlite.double", "--port", "0", "--key", key],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert double.stdout is not None
        word, _, url = double.stdout.readline().strip().partition(" ")
        assert word == "ready", word
        yield url
    finally:
        double.terminate()
        double.wait(60)
        assert double.stdout is not None
        double.stdout.close()


@contextlib.contextmanager
def service_for(data: Path, url: str, key: str, **more: str) -> Iterator[Service]:
    with Service(data, boxlite_environment(url, key, **more)) as service:
        yield service
