"""The gateway: builds the application, gives up root, then listens. The supervisor starts it."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import uvicorn

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.backend import BoxliteBackend
from app.backends.boxlite.egress import BoxEgress
from app.backends.egress_link import EgressLink
from app.backends.process.backend import ProcessBackend
from app.core.backend import Backend
from app.core.connections import NEWCOMERS
from app.core.errors import RuntimeNotEnabled, UnknownImage, UnknownRuntime
from app.core.limits import MIB
from app.core.operator_secrets import OperatorSecrets
from app.core.policy import Policy
from app.core.registry import AUTO, Registry
from app.core.sandboxes import Sandboxes
from app.huge_pages import collapse
from app.keys import KeysError, load_keys
from app.main import create_app
from app.privileges import give_up_root
from app.serving.http_bounds import BoundedHttp
from app.serving.instance import Instance, InstanceError
from app.serving.messages import say
from app.serving.secrets_feed import SecretsFeed
from app.serving.slow_callbacks import SlowCallbacks
from app.serving.ws_bounds import BoundedWebSocket
from app.settings import Settings, SettingsError, check_exposure, load_settings
from app.settings.profiles import ProfilesError, load_profiles
from app.settings.secrets_file import SecretsFileError
from app.spill import SpillFolder
from app.telemetry import Telemetry

STREAM_FRAME = 1024 * 1024
SEND_BUFFER = 256 * 1024  # of one connection; the kernel doubles it for its own bookkeeping (socket(7))
UNSENT_BYTES = 64 * 1024
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
LOCK_SECONDS = 2.0  # for a gateway that was killed: the kernel takes its memory apart before its descriptors
FAREWELL_SECONDS = 2.0  # for clients to read the end of their streams
_LATE = (
    "anyio._backends._asyncio", "encodings.idna", "fastapi.telemetry._runtime",
    "uvicorn.lifespan.on", "uvicorn.loops.uvloop",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    parent, uid = map(int, arguments[:2])
    launcher_socket, egress_socket = (Path(given) if given else None for given in arguments[2:4])
    reason, no_proxy, secrets_descriptor = arguments[4], arguments[5], int(arguments[6])
    try:
        settings = load_settings()
        keys = {**settings.key_names(), **{key.sha256: key.name for key in load_keys(settings.data)}}
        check_exposure(settings, tuple(keys))
        profiles = load_profiles(settings.profiles)
        raise_descriptor_limit(descriptors_needed(settings))
        instance = Instance(settings.data, LOCK_SECONDS)  # before the folder is changed in any way
        spill = open_spill(settings, uid)
        telemetry = Telemetry(key_names=keys)
        secrets = OperatorSecrets()
        feed = _secrets_feed(settings, secrets, secrets_descriptor)
        egress = None
        if egress_socket is not None:
            egress = EgressLink(egress_socket, telemetry.network_event, secrets, shared=len(keys) > 1)
        process = ProcessBackend(launcher_socket, reason, egress)
        proxy = None if no_proxy else settings.egress.boxlite_proxy
        boxes = BoxEgress(egress, proxy) if egress is not None and proxy is not None else None
        boxlite = BoxliteBackend(settings.boxlite, instance.word, egress=boxes, no_proxy=no_proxy)
        backends: list[Backend] = [process, boxlite]
        server = build(settings, telemetry, keys, profiles, spill, backends, secrets, feed)
    except (
        SettingsError, KeysError, ProfilesError, SecretsFileError, InstanceError, UnknownImage, StartRefused
    ) as error:  # fmt: skip
        say(str(error))
        return 2
    give_up_root(uid, parent)
    if parent and os.getppid() != parent:
        return 0
    try:
        prove_spill(spill, settings)
        listener = bind(settings.host, settings.port)
    except StartRefused as error:
        say(str(error))
        return 2
    gc.collect()
    gc.freeze()  # a full collection over what was loaded takes 90 ms, in the middle of somebody's request
    collapse()
    server.run([listener])
    return 0


def _secrets_feed(settings: Settings, secrets: OperatorSecrets, descriptor: int) -> SecretsFeed | None:
    """Raises SecretsFileError."""
    path = settings.egress.secrets_file
    return None if path is None else SecretsFeed(secrets, path, descriptor)


class Companion(Protocol):
    """Runs in the event loop beside the server."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class AnnouncedServer(uvicorn.Server):
    """Prints where it listens when it does, as with port 0 nobody else knows. `farewell` ends what clients wait for."""

    def __init__(
        self, config: uvicorn.Config, farewell: Callable[[], Awaitable[None]], companions: Sequence[Companion] = ()
    ) -> None:
        super().__init__(config)
        self._farewell = farewell
        self._companions = companions

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for companion in self._companions:
            companion.start()
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets streams and held answers end first. uvicorn alone would cut WebSockets off at once, and wait for the
        others until it gives up."""
        for server in self.servers:
            server.close()
        try:
            await self._farewell()
            if tasks := tuple(self.server_state.tasks):
                await asyncio.wait(tasks, timeout=FAREWELL_SECONDS)
            await super().shutdown(sockets)
        finally:
            for companion in self._companions:
                companion.stop()


class StartRefused(Exception):
    """`str(error)` says what to set."""


def build(
    settings: Settings,
    telemetry: Telemetry,
    keys: Mapping[str, str],
    profiles: Mapping[str, Policy],
    spill: SpillFolder,
    backends: Sequence[Backend],
    secrets: OperatorSecrets | None = None,
    feed: Companion | None = None,
) -> uvicorn.Server:
    """Builds the server. It does not listen yet. `keys` are names by SHA-256 in hex. `backends` have the cheapest
    first. `feed` keeps `secrets` up to date."""
    in_use = {"process": settings.process.enabled, RUNTIME: settings.boxlite.in_use}
    registry = Registry(backends, default=settings.runtime, disabled=[name for name, on in in_use.items() if not on])
    _check_default(registry)
    telemetry.take_server_log()
    spill.on_failure = telemetry.spill_failed
    sandboxes = Sandboxes(registry, settings.core_capacity(), telemetry, spill.of, shared=len(keys) > 1)
    app = create_app(
        settings,
        sandboxes,
        registry,
        telemetry=telemetry,
        key_hashes=tuple(keys),
        profiles={name: _with_roots(profile, settings) for name, profile in profiles.items()},
        secrets=secrets,
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=BoundedHttp.with_stall(settings.transfers.stall_seconds),
        ws=BoundedWebSocket,
        lifespan="on",  # `auto` would serve on without an orderly end when it cannot start
        ws_max_size=STREAM_FRAME,
        ws_ping_interval=15,
        # A program that does not read its stdin stops the socket from being read, pongs included: no pong is no sign of
        # a dead client. Writing the ping finds one.
        ws_ping_timeout=None,
        ws_per_message_deflate=False,  # costs more than it saves on loopback, and memory per viewer
        access_log=False,  # telemetry writes it, without query strings
        log_config=None,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=5,
        timeout_keep_alive=60,
    )
    config.load()
    import_what_comes_late()
    _ = app.openapi_json  # takes 150 ms, in which nobody would be served
    watch = SlowCallbacks(settings.slow_callback_ms, telemetry.slow_callback) if settings.slow_callback_ms else None
    companions = [part for part in (telemetry.request_lines, watch, feed) if part is not None]
    return AnnouncedServer(config, sandboxes.aclose, companions)


def _check_default(registry: Registry) -> None:
    """Refuses a default runtime that does not exist. /readyz reports one that is not enabled. Raises StartRefused."""
    try:
        registry.canonical(registry.default)
    except UnknownRuntime as error:
        if error.runtime != AUTO:
            raise StartRefused(f"BULKHEAD_RUNTIME: {error}") from None
    except RuntimeNotEnabled:
        return


def import_what_comes_late() -> None:
    """Imports modules that libraries import at their first use. The interpreter may be where only root can read it, so
    an import after `give_up_root` could fail."""
    for name in _LATE:
        importlib.import_module(name)


def _with_roots(profile: Policy, settings: Settings) -> Policy:
    """The operator's further read-only directories are part of every profile."""
    roots = tuple(str(path) for path in settings.process.root_paths)
    filesystem = replace(profile.filesystem, read_only=(*profile.filesystem.read_only, *roots))
    return replace(profile, filesystem=filesystem)


def bind(host: str, port: int) -> socket.socket:
    """Opens the socket, after root was given up, so that the socket is not root's either. Raises StartRefused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by connections: finds clients that are silent and dead.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # And these bound what waits for a client that does not read. Measured: 85 KiB of the kernel's memory instead of
        # 4 MiB, at the same rate for one that does. With a send buffer of 32 KiB a download over loopback did not end.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.bind(address)
    except OSError as error:
        raise StartRefused(f"cannot listen on {host} port {port}: {why_not_bound(error)}") from error
    return listener


def why_not_bound(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EACCES:
        # ip_unprivileged_port_start is 1024 unless somebody changed it, ip-sysctl.rst.
        return f"{reason}; the gateway is not root: choose a port above 1023, and put a proxy in front of it"
    return reason


def descriptors_needed(settings: Settings) -> int:
    """How many descriptors the capacities need. A sandbox holds three (the owner's socket, its other end while it
    starts, its spill file), an execution three until nothing holds its output any more, an operation on files four
    while it starts, a connection one. The gateway itself needs some more."""
    capacity = settings.capacity
    connections = capacity.connections + capacity.strangers + NEWCOMERS
    return 3 * capacity.sandboxes + 3 * capacity.executions + 4 * capacity.transfers + connections + 1024


def raise_descriptor_limit(need: int) -> None:
    """Raises StartRefused when the hard limit is below the need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        raise StartRefused(
            f"the configured capacity needs {need} descriptors, the limit is {hard}: raise it "
            "(ulimit -Hn, LimitNOFILE=) or lower BULKHEAD_CAPACITY__EXECUTIONS, __SANDBOXES, __CONNECTIONS, "
            "__STRANGERS or __TRANSFERS"
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def open_spill(settings: Settings, uid: int) -> SpillFolder:
    """Makes the folder for output, for the user that the gateway becomes. Raises StartRefused."""
    folder = settings.data / "spill"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if uid >= 0:
            os.chown(folder, uid, uid)
        return SpillFolder(folder, settings.spill_mib * MIB)
    except OSError as error:
        raise StartRefused(f"the data folder {settings.data} cannot be used: {error.strerror}") from error


def prove_spill(spill: SpillFolder, settings: Settings) -> None:
    """Tries the spill folder as the user that will need it. Raises StartRefused."""
    try:
        spill.prove()
    except OSError as error:
        folder = settings.data / "spill"
        raise StartRefused(f"{folder} cannot hold output that does not fit into memory: {error.strerror}") from error


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
