"""Connections whose client speaks to a proxy: it says by itself which host it means. The rest is as in
`ProgramConnection`, and what was read with the request is the first that the client sends."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from app.egress.connection import Cut, Destination, ProgramConnection
from app.egress.dialling import NotDialled
from app.egress.problems import problem_answer
from app.egress.reasons import Reason

if TYPE_CHECKING:
    from app.egress.network import SandboxNetwork

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ProxiedConnection(ProgramConnection):
    def __init__(
        self, network: SandboxNetwork, inside: socket.socket, destination: Destination, first: bytes, *, wide: bool
    ) -> None:
        super().__init__(network, inside, destination, wide=wide)
        self._first = first

    async def _receive(self) -> bytes:
        if not self._first:
            return await super()._receive()
        first, self._first = self._first, b""
        self._count(len(first), 0)
        return first


class TunnelConnection(ProxiedConnection):
    """After CONNECT. It is answered when the host was permitted, and with a raw rule when it was dialled too."""

    async def _pass(self) -> None:
        outside: socket.socket | None = None
        try:
            if self._rule is None:
                raise Cut(Reason.RULE)
            if self._rule.raw:
                self._is_raw = True
                outside = await self._dial()
        except (Cut, NotDialled) as failure:
            self._tell(failure.reason)
            await self._say_goodbye(problem_answer(failure.reason))
            return
        await self._turns.send(self._inside, _ESTABLISHED)
        if outside is None:
            await self._pass_named(self._destination.host)
        else:
            await self._splice(outside, self._first and await self._receive())


class ForwardedConnection(ProxiedConnection):
    """One plain request with a whole URL, and its answer. The next one may be for another host, so it comes on another
    connection: the first bytes have `Connection: close`."""

    async def _pass(self) -> None:
        await self._pass_http(self._destination.host, await self._receive(), heard=_nothing)  # it is there already


def _nothing() -> None:
    pass
