"""The real service for tests: `bulkhead serve` as a child process on a free loopback port, with its own data folder."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
PATIENCE = 200  # seconds, for what does come: a busy machine is many times slower than a quiet one
POLL = 30  # seconds that one request waits

# Tests in parallel have ranges of host uids of their own: a service that is started takes the lowest free range, and
# would take the one of a service that has just been killed, before its test has looked at what is left.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
OWN_UIDS = {"BULKHEAD_PROCESS__UID_BASE": str(1_900_000_000 + _WORKER * 65_536)}


def clean_environment() -> dict[str, str]:
    """What a program of ours is started with: this process's environment without the settings, but for the uids."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BULKHEAD_")} | OWN_UIDS


class Service:
    """Use as a context manager. `log` holds every line that it printed; `url` and `port` are known once it listens."""

    def __init__(
        self,
        data: Path,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        module: str = "app.cli",
    ) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, "serve", "--port", "0", "--data", str(data)],
            cwd=PROJECT,
            env=clean_environment() | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._listening = threading.Event()
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                self._listening.set()
        self._listening.set()  # it ended: whoever waits must look

    def wait_listening(self, seconds: float = PATIENCE) -> None:
        assert self._listening.wait(seconds), "the service did not start in time"
        assert self.port, "the service ended: " + "\n".join(self.log)

    def children(self) -> dict[str, int]:
        """Pids of the launcher, the gateway and the egress process."""
        found: dict[str, int] = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it was killed, and the supervisor has just taken note of it
            if not line:
                continue  # it was killed, and the supervisor has not
            names = {b"app.serving.gateway": "gateway", b"app.egress": "egress"}
            found[next((name for module, name in names.items() if module in line), "launcher")] = int(pid)
        return found

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> tuple[int, Any]:
        """(status, decoded JSON or None). A connection for each call: a test may kill the service between two."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body)
            kind = {} if body is None else {"content-type": "application/json"}
            connection.request(method, path, data, {**kind, **(headers or {})})
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(raw) if raw else None
        except ValueError:
            return answer.status, raw

    def create(self, **body: Any) -> str:
        status, answer = self.call("POST", "/sandboxes", body)
        assert status == 201, answer
        return str(answer["id"])

    def run(self, sandbox: str, *command: str, **body: Any) -> dict[str, Any]:
        """Runs a command to its end: the execution, with `stdout` and `stderr` as text (latin-1: no byte is lost)."""
        status, answer = self.call("POST", f"/sandboxes/{sandbox}/executions", {"command": list(command), **body})
        assert status == 201, answer
        path = f"/sandboxes/{sandbox}/executions/{answer['id']}"
        answer = self.ended(path)
        for channel in ("stdout", "stderr"):
            answer[channel] = self.output(path, channel).decode("latin-1")
        return dict(answer)

    def ended(self, path: str) -> dict[str, Any]:
        """The execution there, once it has ended."""
        for _ in range(PATIENCE // POLL):
            status, answer = self.call("GET", f"{path}?wait_seconds={POLL}")
            assert status == 200, answer
            if answer["state"] == "ended":
                return dict(answer)
        raise AssertionError(f"it runs on: {answer}")

    def output(self, path: str, channel: str = "stdout") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", f"{path}/output?channel={channel}&limit=4194304")
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, data
            return data
        finally:
            connection.close()

    def stop(self, seconds: float = PATIENCE) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def __enter__(self) -> Service:
        try:
            self.wait_listening()
        except BaseException:
            self.process.kill()
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
