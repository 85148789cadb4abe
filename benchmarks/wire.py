"""A WebSocket client as thin as `rest.Rest`: it reads until the exit frame and says when the first byte came."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass

TEXT, BINARY, CLOSE = 1, 2, 8
STDOUT = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """Moments of `time.perf_counter`."""

    first_byte: float
    exit: float


def follow(port: int, path: str, headers: str = "", *, end_stdin: bool = False) -> Seen:
    """Attaches and reads to the end. `end_stdin`: BoxLite has to be told that there is none."""
    with socket.create_connection(("127.0.0.1", port)) as channel:
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = "c29tZXRoaW5nIG9mIDE2IQ=="
        upgrade = f"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}"
        channel.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}{upgrade}\r\n\r\n".encode())
        with channel.makefile("rb") as file:
            if b" 101 " not in file.readline():
                raise RuntimeError(f"no WebSocket at {path}")
            while file.readline() != b"\r\n":
                pass
            if end_stdin:
                _send(channel, TEXT, b'{"type":"stdin_eof"}')
            first = 0.0
            while True:
                head = file.read(2)
                size = head[1] & 127
                if size > 125:
                    size = int.from_bytes(file.read(2 if size == 126 else 8), "big")
                data = file.read(size)
                if head[0] & 15 == BINARY and data[0] == STDOUT:
                    first = first or time.perf_counter()
                elif head[0] & 15 == TEXT and json.loads(data)["type"] == "exit":
                    end = time.perf_counter()
                    _send(channel, CLOSE, b"")
                    return Seen(first, end)
                elif head[0] & 15 == CLOSE:
                    raise RuntimeError(f"{path} was closed without an exit frame")


def _send(channel: socket.socket, opcode: int, payload: bytes) -> None:
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    channel.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)
