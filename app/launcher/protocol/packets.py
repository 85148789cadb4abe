"""Packets with descriptors, for every end of every socket of the launcher."""

from __future__ import annotations

import _socket
import os
import stat
import struct

from app.launcher.protocol import MAX_PACKET, ProtocolError

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Sequence

_ANCILLARY = _socket.CMSG_SPACE(4 * 24)  # no record of ours carries more: 17 for a sandbox with all its ports


def receive(socket: _socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """Returns one packet and its descriptors, all of them CLOEXEC. b"" when the other side is gone. Raises OSError, and
    ProtocolError for a packet that was cut, whose descriptors are closed."""
    data, ancillary, said, _ = socket.recvmsg(MAX_PACKET + 4096, _ANCILLARY, _socket.MSG_CMSG_CLOEXEC | flags)
    descriptors: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
    if said & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        close(descriptors)
        raise ProtocolError("a packet was cut")
    return data, descriptors


def send(socket: _socket.socket, packet: bytes, descriptors: Sequence[int]) -> None:
    """Sends at once or not at all, as nobody waits for a peer that does not read. Raises OSError."""
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
