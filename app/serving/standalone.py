"""Launcher and gateway as two services, each started by a service manager (systemd, a container engine).

`bulkhead launcher` starts as root and listens on BULKHEAD_PROCESS__LAUNCHER_SOCKET. `bulkhead serve` is then the
gateway, which is never root and connects to that socket.

Each reads its own environment, so the gateway never tells the launcher what it may do. The gateway starts no process,
so nothing of it ever has a privilege. When the launcher is restarted, the gateway finds it again.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from app.backends.process.link import LauncherLink
from app.core.errors import BulkheadError
from app.serving.messages import say
from app.serving.restarting import StartFailed
from app.serving.slot import NoSlot
from app.serving.supervisor import REFUSED, ServiceSockets, Supervisor, gateway_command
from app.settings import Settings, SettingsError, load_settings


def run_launcher(**options: Any) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit status. `options` are those of ProcessSettings."""
    try:
        settings = _settings(options)
        check_folder(_socket_of(settings))
        if settings.process.gateway_uid is None:
            raise StartFailed(
                "set BULKHEAD_PROCESS__GATEWAY_UID to the uid of the gateway, the only user who may connect"
            )
        return Supervisor(settings, {}, with_gateway=False).run()
    except (SettingsError, NoSlot, StartFailed) as error:
        say(str(error))
        return REFUSED


def check_launcher(**options: Any) -> int:
    """Returns 0 when a launcher answers on the socket and lacks no layer. Otherwise it returns 1 and prints a sentence.
    It is for health checks."""
    try:
        about = asyncio.run(_about(_socket_of(_settings(options))))
    except (SettingsError, StartFailed, BulkheadError) as error:
        say(str(error))
        return 1
    if about.get("missing"):
        say(f"this host lacks {about['missing']}; `bulkhead probe` says how to get it")
        return 1
    return 0


def become_gateway(settings: Settings, given: dict[str, Any]) -> NoReturn:
    """This process is the gateway from here on. Raises StartFailed."""
    if os.geteuid() == 0:
        raise StartFailed(
            "with BULKHEAD_PROCESS__LAUNCHER_SOCKET the gateway must not run as root: start it as the user of the "
            "launcher's BULKHEAD_PROCESS__GATEWAY_UID"
        )
    enabled = settings.process.enabled
    socket, reason = (_socket_of(settings), "") if enabled else (None, "the operator has not enabled it")
    argv, environment = gateway_command(given, 0, -1, ServiceSockets(socket), reason)
    os.execve(argv[0], argv, environment)  # noqa: S606 - this interpreter again


def check_folder(socket: Path) -> None:
    """Root makes the socket there and changes its owner by name. So no other user may be able to replace it, or a
    folder above it. Raises StartFailed."""
    folder = socket.parent.absolute()
    try:
        above = {*folder.parents, *folder.resolve().parents}
        bad = not _roots_own(folder) or not all(_roots_own(place, sticky=True) for place in above)
    except OSError as error:
        raise StartFailed(f"the socket's folder {folder} cannot be used: {error.strerror}") from error
    if bad:
        raise StartFailed(
            f"the socket's folder {folder} and those above it must belong to root, and nobody else may write there"
        )


def _roots_own(folder: Path, *, sticky: bool = False) -> bool:
    """`sticky`: others may have things of their own there, as in /tmp."""
    found = folder.stat()
    shared = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return found.st_uid == 0 and (not shared or (sticky and bool(found.st_mode & stat.S_ISVTX)))


def _settings(options: dict[str, Any]) -> Settings:
    """The options of the command line go before the environment, one by one."""
    given = {name: value for name, value in options.items() if value is not None}
    return load_settings(process=given) if given else load_settings()


def _socket_of(settings: Settings) -> Path:
    if settings.process.launcher_socket is None:
        raise StartFailed("set BULKHEAD_PROCESS__LAUNCHER_SOCKET or --socket to the launcher's socket")
    return settings.process.launcher_socket


async def _about(socket: Path) -> dict[str, str]:
    link = LauncherLink(socket, lambda *_: None, lambda: None, lambda _, descriptor: os.close(descriptor))
    try:
        await link.greet()
        return link.about
    finally:
        link.close()
