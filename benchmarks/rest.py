"""A client as thin as one can be, so that what is measured is the service: one keep-alive connection, no library."""

from __future__ import annotations

import json
import socket
from typing import Any


class Rest:
    """Blocking HTTP/1.1 with JSON bodies over one TCP connection. `headers`: lines for every request."""

    def __init__(self, port: int, headers: str = "") -> None:
        self._headers = f"host: localhost\r\n{headers}"
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        kind = "" if body is None else "content-type: application/json\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}{kind}content-length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + data)
        return self.answer()

    def answer(self) -> tuple[int, Any]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(rest) < length:
            rest += self._more()
        status = int(head.split()[1])
        return status, json.loads(rest) if rest else None

    def _more(self) -> bytes:
        piece = self.socket.recv(65536)
        if not piece:
            raise ConnectionError("the service closed the connection")
        return piece

    def close(self) -> None:
        self.socket.close()

    # --- the three things that are timed

    def create(self, **body: object) -> str:
        status, answer = self("POST", "/sandboxes", {"runtime": "process", **body})
        if status != 201:
            raise RuntimeError(answer)
        return str(answer["id"])

    def execute(self, sandbox: str, *command: str, **options: object) -> dict[str, Any]:
        """Until the exit is known: two requests."""
        status, answer = self("POST", f"/sandboxes/{sandbox}/executions", {"command": list(command), **options})
        if status != 201:
            raise RuntimeError(answer)
        path = f"/sandboxes/{sandbox}/executions/{answer['id']}"
        while answer.get("exit") is None:
            _, answer = self("GET", f"{path}?wait_seconds=30")
        return dict(answer)

    def delete(self, sandbox: str) -> None:
        self("DELETE", f"/sandboxes/{sandbox}")
