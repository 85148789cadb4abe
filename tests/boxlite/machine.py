"""The real BoxLite server with real microVMs: started in the machine of deploy/boxlite, or one that already runs.

For fast development start one with `deploy/boxlite/serve --control 18101` and give the tests its addresses and key as
BULKHEAD_TEST_BOXLITE_URL, BULKHEAD_TEST_BOXLITE_CONTROL (both `http://127.0.0.1:PORT`) and BULKHEAD_TEST_BOXLITE_KEY.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy/boxlite"
IMAGE = "/images/busybox"  # what every box of the machine can be made from, as `rootfs_path`
TAKEN = "Could not set up host forwarding rule"  # QEMU, when somebody took a port that was free a moment ago


def missing() -> str:
    """Why there can be no machine here; empty when one is given, or can be started."""
    return "" if os.environ.get("BULKHEAD_TEST_BOXLITE_URL") else not_built()


def not_built() -> str:
    """Why no machine can be started here; empty when one can."""
    found = subprocess.run([SCRIPTS / "build", "--check"], stdout=subprocess.PIPE, text=True, check=False)
    return ", ".join(found.stdout.splitlines())


@contextlib.contextmanager
def running_machine() -> Iterator[Machine]:
    """The one that the environment names; else a new one, which ends with the block, or with this process."""
    if url := os.environ.get("BULKHEAD_TEST_BOXLITE_URL"):
        yield Machine(url, os.environ["BULKHEAD_TEST_BOXLITE_KEY"], os.environ["BULKHEAD_TEST_BOXLITE_CONTROL"])
        return
    for tries_left in (2, 1, 0):
        start = MachineStart()
        try:
            start.wait_ready()
        except MachineFailed as failed:
            if tries_left and TAKEN in str(failed):
                continue
            raise
        else:
            yield start.machine
            return
        finally:
            start.stop()


@dataclass(frozen=True)
class Machine:
    """`url` and `key` are the server's; `control` is the address of what runs beside it."""

    url: str
    key: str
    control: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def call(self, method: str, path: str, body: object = None, seconds: float = 150) -> httpx.Response:
        """A request to the server. A connection for each: a test may kill the server between two."""
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=seconds, trust_env=False) as client:
            return client.request(method, path, json=body) if body is not None else client.request(method, path)

    def run(self, command: str, seconds: float = 150) -> str:
        """Output of a shell command, as root, in the machine beside the server; it must not fail."""
        done = self._beside("run", command, seconds)
        assert done["status"] == 0, f"{command}: status {done['status']}: {done['output']}"
        return str(done["output"])

    def kill_server(self) -> None:
        """SIGKILL; returns when it is dead. It comes back by itself, unless it is held away."""
        self._beside("kill")

    @contextlib.contextmanager
    def without_server(self) -> Iterator[None]:
        """The server is dead in the block, and answers again after it."""
        self._beside("hold")
        try:
            self.kill_server()
            yield
        finally:
            self._beside("release")
            self.wait_for_server()

    def wait_for_server(self, seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self.call("GET", "/v1/config", seconds=20).status_code == 200:
                    return
            assert time.monotonic() < end, f"the BoxLite server does not answer after {seconds} s"
            time.sleep(0.1)  # a server has no event that another process could wait for

    def kill_box(self, box_id: str) -> None:
        """SIGKILL to all processes of a box's virtual machine, behind the server's back."""
        self.run(f"echo 1 >/sys/fs/cgroup/boxlite/{box_id}/cgroup.kill")

    def remove_boxes(self) -> None:
        """Stops and deletes every box."""
        for box in self.call("GET", "/v1/boxes").json()["boxes"]:
            self.call("POST", f"/v1/boxes/{box['box_id']}/stop")
            self.call("DELETE", f"/v1/boxes/{box['box_id']}?force=true")

    def _beside(self, what: str, body: str = "", seconds: float = 150) -> dict[str, Any]:
        with httpx.Client(headers=self.headers, timeout=seconds, trust_env=False) as client:
            answer = client.post(f"{self.control}/{what}", content=body.encode())
        answer.raise_for_status()
        return dict(answer.json())


class MachineFailed(Exception):
    """The machine did not start; with what it said."""


class MachineStart:
    """A machine of our own from its first moment. It ends with stop(), or when this process ends, however that is."""

    def __init__(self) -> None:
        server, control = free_ports(2)
        self.machine = Machine(f"http://127.0.0.1:{server}", secrets.token_urlsafe(16), f"http://127.0.0.1:{control}")
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  stop() closes it
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", SCRIPTS / "serve", "--port", str(server), "--control", str(control)],
            env={**os.environ, "BOXLITE_API_KEY": self.machine.key, "LIMIT": "5400", "PATIENCE": "600"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops this
        )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        if not self.process.stdout.readline():  # its first line is a setting, printed when the server answers
            self.process.wait()
            self._said.seek(0)
            raise MachineFailed(self._said.read())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()
            self._said.close()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
