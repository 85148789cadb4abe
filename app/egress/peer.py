"""The connection with the gateway: orders come in, reports go out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

from app.egress import protocol
from app.egress.protocol import InvalidMessage, Order, Report

BEHIND = 2048  # reports that wait for a gateway that does not read
ORDERS = 16  # that are carried out in one run through the loop


class Peer:
    """`carry_out` gets each order with its descriptors, which it owns from then on. `ended` is called once."""

    def __init__(
        self,
        connection: socket.socket,
        carry_out: Callable[[Order, list[int]], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection, self._carry_out, self._ended = connection, carry_out, ended
        self._waiting: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._is_closed = False
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._read)

    @property
    def is_behind(self) -> bool:
        """Whether so many reports wait that those about events should not be added."""
        return len(self._waiting) >= BEHIND

    def tell(self, report: Report, told: Callable[[], None] | None = None) -> None:
        """Sends a report, in order, and calls `told` when the gateway's socket has it."""
        if self._is_closed:
            return
        self._waiting.append((protocol.encode(report), told))
        if len(self._waiting) == 1:
            self._flush()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.clear()
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        self._connection.close()
        self._ended()

    def _read(self) -> None:
        try:
            for _ in range(ORDERS):
                packet, descriptors = protocol.receive(self._connection)
                if not packet:
                    self.close()
                    return
                try:
                    order = protocol.decode_order(packet)
                except InvalidMessage:
                    protocol.close(descriptors)
                    raise
                self._carry_out(order, descriptors)
                if self._is_closed:
                    return
        except BlockingIOError:
            return
        except (OSError, InvalidMessage):
            self.close()

    def _flush(self) -> None:
        try:
            while self._waiting:
                packet, told = self._waiting[0]
                protocol.send(self._connection, packet)
                self._waiting.popleft()
                if told is not None:
                    told()
        except BlockingIOError:
            self._loop.add_writer(self._connection.fileno(), self._flush)
        except OSError:
            self.close()
        else:
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_writer(self._connection.fileno())
