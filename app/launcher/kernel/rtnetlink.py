"""The one route that a sandbox with ports has more than others, made without a library, rtnetlink(7)."""

from __future__ import annotations

import _socket
import os
import struct

_NEWROUTE, _ERROR = 24, 2
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL = 255, 4, 254, 2
_OUTPUT_INTERFACE = 4
_LOOPBACK = 1  # the index of `lo` in every namespace, linux/net.h
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, two prefix lengths, tos, table, protocol, scope, type; flags
_ATTRIBUTE = struct.Struct("=HHI")


def add_local_default_route(family: int) -> None:
    """`ip route add local default dev lo` for the address family: every address without a narrower route is delivered
    to this namespace itself. Raises OSError."""
    route = _ROUTE.pack(family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size, _OUTPUT_INTERFACE, _LOOPBACK)
    flags = _REQUEST | _ACK | _EXCLUSIVE | _CREATE
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _NEWROUTE, flags, 1, 0) + body)
        answer = netlink.recv(4096)
    finally:
        netlink.close()
    kind, (number,) = _HEADER.unpack_from(answer)[1], struct.unpack_from("=i", answer, _HEADER.size)
    if kind != _ERROR or number:  # 0 is the acknowledgement
        raise OSError(-number, os.strerror(-number))
