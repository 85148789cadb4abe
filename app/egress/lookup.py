"""The real addresses of a name, asked of the operator's DNS server or of those of the host.

Both kinds of address are asked for at once, over one socket that takes answers from that server alone. TCP is not used:
an answer of 64 KiB, which the owner of a name may give, would hold everybody up for 115 ms. What does not fit into a
datagram is not dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from app.core.hosts import IPAddress
from app.egress.dns_wire import PAYLOAD, InvalidDns, RecordType, addresses_in, is_answer_to, question_for
from app.egress.reasons import Reason
from app.egress.sockets import NO_DESCRIPTORS
from app.egress.times import Times
from app.egress.turns import SandboxTurns

_PORT = 53
_RESOLV_CONF = Path("/etc/resolv.conf")

Endpoint = tuple[IPAddress, int]
_KINDS = (RecordType.A, RecordType.AAAA)
Answers = list[list[IPAddress] | None]  # of both kinds; None while, or because, there is none


class NoAddress(Exception):
    """`reason`: NOT_FOUND, RESOLVER or DESCRIPTORS."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Lookup:
    """`server` is the one to ask. Without one, those of /etc/resolv.conf are asked, which is read when it changes."""

    def __init__(self, server: Endpoint | None, times: Times) -> None:
        self._times, self._is_given = times, server is not None
        self._servers: Sequence[Endpoint] = [server] if server is not None else []
        self._read_at = -1

    async def addresses(self, turns: SandboxTurns, name: str) -> list[IPAddress]:
        """IPv4 first: it is what works wherever something works. Never empty. Raises NoAddress."""
        loop = asyncio.get_running_loop()
        until, reason = loop.time() + self._times.resolve, Reason.RESOLVER
        for edns in (True, False):  # old servers know nothing of it
            questions = [question_for(os.urandom(2), name, kind, with_extensions=edns) for kind in _KINDS]
            for server in self._configured():
                seconds = min(until - loop.time(), self._times.server)
                try:
                    answers = await _ask(turns, server, questions, seconds)
                except OSError as error:
                    reason = Reason.DESCRIPTORS if error.errno in NO_DESCRIPTORS else Reason.RESOLVER
                    continue
                if found := [address for answer in answers for address in answer or ()]:
                    return list(dict.fromkeys(found))
                if None not in answers:
                    raise NoAddress(Reason.NOT_FOUND)
        raise NoAddress(reason)

    def _configured(self) -> Sequence[Endpoint]:
        if not self._is_given:
            with contextlib.suppress(OSError):
                changed = _RESOLV_CONF.stat().st_mtime_ns
                if changed != self._read_at:
                    self._servers = servers_of(_RESOLV_CONF.read_text(errors="replace")) or self._servers
                    self._read_at = changed
        return self._servers


def servers_of(resolv_conf: str) -> list[Endpoint]:
    """The DNS servers of a file as resolv.conf(5) describes it."""
    servers: list[Endpoint] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                servers.append((ip_address(words[1]), _PORT))
    return servers


async def _ask(turns: SandboxTurns, server: Endpoint, questions: Sequence[bytes], seconds: float) -> Answers:
    """Returns what has come after so many seconds at most. Raises OSError."""
    answers: Answers = [None] * len(questions)
    waiting = dict(enumerate(questions))
    address, port = server
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as endpoint:
        endpoint.connect((str(address), port))
        try:
            async with asyncio.timeout(max(0.0, seconds)) as patience:
                for question in questions:
                    endpoint.send(question)
                while waiting:
                    answer = await turns.receive(endpoint, PAYLOAD)
                    for number, question in list(waiting.items()):
                        if is_answer_to(answer, question):
                            del waiting[number]
                            answers[number] = _addresses(answer)
                            break
        except TimeoutError:
            if not patience.expired():
                raise
        finally:
            turns.forget(endpoint.fileno())
    return answers


def _addresses(answer: bytes) -> list[IPAddress] | None:
    """None when the server has failed."""
    try:
        return addresses_in(answer)
    except InvalidDns:
        return None
