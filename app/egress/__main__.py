"""The egress process: `python -P -m app.egress PARENT UID LISTENER_FD CONFIG_FD`.

It gives up root before it serves anybody. Before that it reads the configuration, and the certificates of the
authorities that may vouch for hosts: both may be where only root can read. The supervisor keeps the listening Unix
socket, so that it outlives this process. PARENT is the pid with which this process dies, or 0. UID is the user that it
becomes, or -1.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import resource
import signal
import socket
import ssl
import sys
from typing import Any

import uvloop

from app.egress.config import EgressConfig, InvalidConfig
from app.egress.server import EgressServer
from app.egress.upstream_tls import trusting
from app.huge_pages import collapse
from app.privileges import give_up_root

DESCRIPTORS = 65_536  # two for a connection, up to 18 for a sandbox
NO_MEMORY = 3  # the status of its end
_NO_MEMORY = b"bulkhead: egress: it has used the memory that it may have, and ends with all connections\n"
# What dnspython imports at its first use. The interpreter may be where only root can read it.
_LATE = (
    "dns.rdtypes.ANY.CNAME", "dns.rdtypes.ANY.DNAME", "dns.rdtypes.ANY.OPT", "dns.rdtypes.ANY.SOA",
    "dns.rdtypes.ANY.TSIG", "dns.rdtypes.IN.A", "dns.rdtypes.IN.AAAA", "encodings.idna",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    parent, uid, listener, config_file = map(int, arguments)
    for name in _LATE:
        importlib.import_module(name)
    raise_descriptor_limit()
    try:
        with os.fdopen(config_file, "rb") as file:
            config = EgressConfig.load(file.read())
        trusted = trusting(config.ca_file)
        give_up_root(uid, parent)
        if parent and os.getppid() != parent:
            return 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_memory(config.memory_bytes)
        sys.unraisablehook = _say_nothing
        gc.collect()
        gc.freeze()
        collapse()
        uvloop.run(serve(socket.socket(fileno=listener), config, trusted))
    except (InvalidConfig, ValueError) as error:
        sys.stderr.write(f"bulkhead: egress: {error}\n")
        return 2
    return 0


async def serve(listener: socket.socket, config: EgressConfig, trusted: ssl.SSLContext) -> None:
    """Serves until SIGTERM. Raises ValueError for an address in the configuration that is none."""
    asyncio.get_running_loop().set_exception_handler(_end_without_memory)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = EgressServer(listener, config, trusted)
    await stop.wait()
    await server.aclose()


def raise_descriptor_limit() -> None:
    """As far as this process may. With fewer, sandboxes and connections are refused when there are none left."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else max(hard, DESCRIPTORS)
    for limits in ((wanted, wanted), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (OSError, ValueError):
            continue
        return


def limit_memory(size: int) -> None:
    """RLIMIT_DATA: heap and private writable mappings, and not the code of libraries."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _end_without_memory(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What had no memory is half done, and somebody may wait for it. The next process begins with everything anew."""
    if isinstance(context.get("exception"), MemoryError):
        os.write(2, _NO_MEMORY)
        os._exit(NO_MEMORY)
    loop.default_exception_handler(context)


def _say_nothing(_: sys.UnraisableHookArgs) -> None:
    """A name in a ClientHello that is no ASCII is told in this way, as often as a program likes."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
