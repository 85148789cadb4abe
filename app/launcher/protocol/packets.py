"""Packets with descriptors, for the launcher's side of every socket."""

from __future__ import annotations

import _socket
import os
import stat
import struct

from app.launcher.protocol import MAX_PACKET, ProtocolError

_ANCILLARY = _socket.CMSG_SPACE(4 * 16)  # the most that any record of ours carries


def receive(socket: _socket.socket) -> tuple[bytes, list[int]]:
    """Returns one packet and its descriptors. b"" when the other side is gone."""
    data, ancillary, flags, _ = socket.recvmsg(MAX_PACKET + 4096, _ANCILLARY, _socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        close(descriptors)
        raise ProtocolError("a packet was cut")
    return data, descriptors


def send(socket: _socket.socket, packet: bytes, descriptors: list[int]) -> None:
    """Sends at once or not at all, as a peer that does not read must not stop the launcher. Raises OSError."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
    socket.sendmsg([packet], rights if descriptors else [], _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)


def close(descriptors: list[int]) -> None:
    """Closes descriptors of any kind. A socket with a linger time would otherwise hold up its last closer for that
    time."""
    for descriptor in descriptors:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            socket = _socket.socket(fileno=descriptor)
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, struct.pack("ii", 0, 0))
            socket.detach()
        os.close(descriptor)
