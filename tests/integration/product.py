"""A running product, reached as its users reach it: a published port and a key."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

WAIT = 60  # seconds that one request waits for an end


@dataclass(frozen=True, slots=True)
class Product:
    port: int
    key: str

    def ask(self, method: str, path: str, body: object = None, timeout: float = 600) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def call(self, method: str, path: str, body: object = None, timeout: float = 600) -> tuple[int, Any]:
        status, raw = self.ask(method, path, body, timeout)
        return status, json.loads(raw) if raw else None

    def create(self, **body: Any) -> dict[str, Any]:
        status, answer = self.call("POST", "/sandboxes", body)
        assert status == 201, answer
        return dict(answer)

    def run(self, sandbox: str, *command: str, wait: int = 600, **body: Any) -> dict[str, Any]:
        """Runs a command to its end: the execution, with `stdout` and `stderr` as text."""
        status, answer = self.call("POST", f"/sandboxes/{sandbox}/executions", {"command": list(command), **body})
        assert status == 201, answer
        path = f"/sandboxes/{sandbox}/executions/{answer['id']}"
        for _ in range(0, wait, WAIT):
            status, answer = self.call("GET", f"{path}?wait_seconds={WAIT}")
            assert status == 200, answer
            if answer["state"] == "ended":
                break
        assert answer["state"] == "ended", f"it runs on after {wait} s: {answer}"
        for channel in ("stdout", "stderr"):
            status, raw = self.ask("GET", f"{path}/output?channel={channel}&limit=4194304")
            assert status == 200, raw
            answer[channel] = raw.decode("latin-1")
        return dict(answer)

    def delete(self, sandbox: str) -> None:
        status, answer = self.ask("DELETE", f"/sandboxes/{sandbox}")
        assert status == 204, answer
