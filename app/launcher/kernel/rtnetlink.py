"""What a sandbox with ports has more than others on its loopback: a route and an address, rtnetlink(7)."""

from __future__ import annotations

import _socket
import os
import struct

_NEWADDR, _NEWROUTE, _ERROR = 20, 24, 2
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL = 255, 4, 254, 2
_OUTPUT_INTERFACE, _LOCAL_ADDRESS = 4, 2  # attributes: RTA_OIF, IFA_LOCAL
_LOOPBACK = 1  # the index of `lo` in every namespace, linux/net.h
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, two prefix lengths, tos, table, protocol, scope, type; flags
_ADDRESS = struct.Struct("=4BI")  # ifaddrmsg: family, prefix length, flags, scope; interface
_ATTRIBUTE = struct.Struct("=HHI")  # of four bytes


def add_local_default_route(family: int) -> None:
    """`ip route add local default dev lo` for the address family: every address without a narrower route is delivered
    to this namespace itself. Raises OSError."""
    route = _ROUTE.pack(family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL, 0)
    _add(_NEWROUTE, route + _ATTRIBUTE.pack(_ATTRIBUTE.size, _OUTPUT_INTERFACE, _LOOPBACK))


def add_loopback_address(address: bytes) -> None:
    """`ip address add ADDRESS/32 scope host dev lo`; the address is IPv4, in network byte order. Raises OSError."""
    body = _ADDRESS.pack(_socket.AF_INET, 32, 0, _SCOPE_HOST, _LOOPBACK)
    _add(_NEWADDR, body + struct.pack("=HH4s", _ATTRIBUTE.size, _LOCAL_ADDRESS, address))


def _add(kind: int, body: bytes) -> None:
    flags = _REQUEST | _ACK | _EXCLUSIVE | _CREATE
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        answer = netlink.recv(4096)
    finally:
        netlink.close()
    answered, (number,) = _HEADER.unpack_from(answer)[1], struct.unpack_from("=i", answer, _HEADER.size)
    if answered != _ERROR or number:  # 0 is the acknowledgement
        raise OSError(-number, os.strerror(-number))
