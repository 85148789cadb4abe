"""A port of this machine's loopback, as containers reach it: over the engine's bridge, and for nobody else."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def relayed(address: str, target: int) -> Iterator[int]:
    """The port on `address` while the block lasts. Connections live until either end closes."""
    with socket.create_server((address, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return  # closed: the block is over
                threading.Thread(target=_pump, args=(accepted, target), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _pump(near: socket.socket, target: int) -> None:
    with near, socket.create_connection(("127.0.0.1", target)) as far, contextlib.suppress(ConnectionError):
        other = {near: far, far: near}
        while True:
            for source in select.select([near, far], [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                other[source].sendall(data)
