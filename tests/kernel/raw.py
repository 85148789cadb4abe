"""Connections that do what no client library would: stop reading, stop sending, hang up in the middle."""

from __future__ import annotations

import base64
import os
import socket
import struct

from tests.service import PATIENCE, Service


def open_socket(service: Service, *, receive_buffer: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", service.port))
    return connection


def head(service: Service, method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{service.port}", *lines, "", "")).encode()


def post(service: Service, path: str, body: bytes, *lines: str) -> bytes:
    return head(service, "POST", path, "Content-Type: application/json", f"Content-Length: {len(body)}", *lines) + body


def upgrade(service: Service, path: str, *lines: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    wants = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    return head(service, "GET", path, *wants, *lines)


def answer_head(connection: socket.socket) -> bytes:
    """To the empty line, and not a byte further."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            break
        data += piece
    return data


def stalled_viewer(service: Service, path: str) -> socket.socket:
    """An open stream whose client never reads."""
    connection = open_socket(service, receive_buffer=4096)
    connection.sendall(upgrade(service, path))
    assert b" 101 " in answer_head(connection)
    return connection


def reset(connection: socket.socket) -> None:
    """Hangs up at once, unsent and unread bytes lost, as a machine that goes away."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
