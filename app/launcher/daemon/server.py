"""The launcher's loop. It takes plans from the gateway, makes sandboxes and ends them. It has one thread, and no data
passes through it.

The gateway is not trusted. Every name is looked up, every number is compared with the configuration's ceilings, and
every path is resolved only inside the template. A connection owns the sandboxes that it made. When it ends, they end.
"""

from __future__ import annotations

import _socket
import os
import select
import struct

from app.launcher.config import Config
from app.launcher.daemon import cgroup
from app.launcher.daemon.checks import Refusal, reply
from app.launcher.daemon.connection import Connection
from app.launcher.daemon.loop_storage import LoopStorage, StorageError
from app.launcher.daemon.sandbox_table import SandboxTable
from app.launcher.protocol import (
    AGENT,
    CREATE,
    DESTROY,
    EXECUTE,
    FINISH,
    HELLO,
    KILL,
    LISTEN,
    PAUSE,
    REFUSED,
    RESUME,
    TERMINAL,
    USAGE,
    CreatePlan,
    ProtocolError,
    Reader,
)
from app.launcher.protocol.packets import close, receive
from app.launcher.sandbox.trust import TrustStores

_SO_PEERCRED = 17
_RETRY_MS = 2
_MOST_CONNECTIONS = 32  # a gateway needs one


class LauncherServer:
    def __init__(
        self,
        config: Config,
        listener: _socket.socket,
        tree: cgroup.CgroupTree,
        lock_counter: int,
        storage: LoopStorage | StorageError,
        trust_stores: TrustStores,
    ) -> None:
        self._config, self._listener = config, listener
        self._connections: dict[int, Connection] = {}
        self._poll = select.poll()
        self._poll.register(listener.fileno(), select.POLLIN)
        self._sandboxes = SandboxTable(config, tree, self._poll, lock_counter, storage, trust_stores)
        self.stopping = False

    # --- the loop

    def serve(self, wake: int) -> None:
        """Serves until `stopping` is set (a signal handler writes to `wake`) and the last sandbox is gone."""
        self._poll.register(wake, select.POLLIN)
        while not self.stopping or len(self._sandboxes):
            to_prepare = self._connections and not self._sandboxes.prepared
            soon = self._sandboxes.busy or to_prepare
            happened = self._poll.poll(_RETRY_MS if soon else self._sandboxes.milliseconds_left)
            for descriptor, event in happened:
                if descriptor == wake:
                    os.read(wake, 4096)
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._connections:
                    if event != select.POLLOUT:  # that there is room again is for `_flush`
                        self._hear(self._connections[descriptor])
                elif self._sandboxes.knows(descriptor):
                    self._sandboxes.hear(descriptor)
            self._sandboxes.go_on()
            self._flush()
            if self.stopping:
                self._sandboxes.end_all()
            elif not happened and to_prepare:
                self._sandboxes.prepare(
                    next(iter(self._connections.values()))
                )  # nobody asked for anything for a moment

    def _flush(self) -> None:
        """Sends answers that had no room, and drops gateways that are gone."""
        for connection in tuple(self._connections.values()):
            if connection.unsent or connection.blocked:
                connection.flush()
                connection.blocked = bool(connection.unsent)
                wake_for = select.POLLIN | select.POLLOUT if connection.blocked else select.POLLIN
                self._poll.modify(connection.socket.fileno(), wake_for)
            if connection.broken:
                self._hang_up(connection)

    def _accept(self) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
        except OSError:
            return
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)
        uid = struct.unpack("3i", socket.getsockopt(_socket.SOL_SOCKET, _SO_PEERCRED, 12))[1]
        if uid not in (0, self._config.gateway_uid) or len(self._connections) >= _MOST_CONNECTIONS:
            socket.close()
            return
        self._connections[descriptor] = Connection(socket)
        self._poll.register(descriptor, select.POLLIN)

    def _hang_up(self, connection: Connection) -> None:
        descriptor = connection.socket.fileno()
        self._poll.unregister(descriptor)
        del self._connections[descriptor]
        connection.close()
        self._sandboxes.abandon(connection)

    # --- the gateway's requests

    def _hear(self, connection: Connection) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors = receive(connection.socket)
            if not data:
                return self._hang_up(connection)
            source = Reader(data)
            kind, request = source.u8(), source.u32()
            try:
                self._carry_out(connection, kind, request, source, descriptors)
            except Refusal as refusal:
                record = reply(request, REFUSED).text(refusal.step).u32(refusal.errno).text(refusal.detail)
                connection.send(bytes(record.data))
        except (OSError, ProtocolError):
            return self._hang_up(connection)  # it does not speak our protocol: it is not our gateway
        finally:
            close(descriptors)
        return None

    def _carry_out(
        self, connection: Connection, kind: int, request: int, source: Reader, descriptors: list[int]
    ) -> None:
        if kind == HELLO:
            source.end()
            connection.send(bytes(reply(request).many(self._sandboxes.about()).data))
        elif kind == CREATE:
            plan = CreatePlan.read(source)
            source.end()
            self._sandboxes.create(connection, request, plan, descriptors)
        elif kind in (EXECUTE, AGENT):
            self._sandboxes.execute(connection, kind, source, descriptors)
        elif kind == TERMINAL:
            sandbox = self._sandboxes.find(connection, source.text(64))
            source.end()
            connection.send(bytes(reply(request).data), [self._sandboxes.open_terminal(sandbox)])
        elif kind == LISTEN:
            sandbox_id, ports = source.text(64), [source.u32() for _ in range(source.u8())]
            source.end()
            sandbox = self._sandboxes.find(connection, sandbox_id)
            connection.send(bytes(reply(request).data), self._sandboxes.listen(sandbox, ports, descriptors))
        elif kind == DESTROY:
            sandbox = self._sandboxes.find(connection, source.text(64))
            source.end()
            sandbox.waiting.append(request)
            sandbox.kill()
        elif kind in (PAUSE, RESUME):
            sandbox = self._sandboxes.find(connection, source.text(64))
            source.end()
            change = self._sandboxes.pauses.begin if kind == PAUSE else self._sandboxes.pauses.end
            change(sandbox, request)
        elif kind in (FINISH, KILL, USAGE):
            sandbox_id, number = source.text(64), source.u32()
            source.end()
            sandbox = self._sandboxes.find(connection, sandbox_id)
            if kind == KILL:
                self._sandboxes.kill(sandbox, number, request)
            else:
                tell = self._sandboxes.finish if kind == FINISH else self._sandboxes.usage
                connection.send(bytes(tell(sandbox, number, request).data))
        else:
            raise ProtocolError("an unknown request")
