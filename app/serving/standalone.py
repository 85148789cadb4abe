"""Launcher, egress process and gateway as three services, each started by a service manager (systemd, a container
engine).

`bulkhead launcher` starts as root and listens on BULKHEAD_PROCESS__LAUNCHER_SOCKET. `bulkhead egress` is never root and
listens on BULKHEAD_EGRESS__SOCKET. `bulkhead serve` is then the gateway, which is never root and connects to both.

Each reads its own environment, so the gateway never tells the others what they may do. Gateway and egress process start
no process, so nothing of them ever has a privilege. When one of the others is restarted, the gateway finds it again.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from app.serving.egress_process import egress_config, exec_egress, listen_for_gateway
from app.serving.messages import say
from app.serving.restarting import StartFailed
from app.serving.slot import NoSlot
from app.serving.supervisor import PROJECT, REFUSED, ServiceSockets, Supervisor, gateway_command
from app.settings import Settings, SettingsError, load_settings


def run_launcher(launcher_socket: Path | None = None, gateway_uid: int | None = None) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit status. What is given goes before the settings."""
    try:
        settings = _settings(process={"launcher_socket": launcher_socket, "gateway_uid": gateway_uid})
        check_folder(_launcher_socket_of(settings))
        _gateway_uid_of(settings)
        return Supervisor(settings, {}, with_gateway=False).run()
    except (SettingsError, NoSlot, StartFailed) as error:
        say(str(error))
        return REFUSED


def become_egress(egress_socket: Path | None = None, gateway_uid: int | None = None) -> int:
    """This process is the egress process from here on. Returns the exit status if it cannot be."""
    try:
        settings = _settings(process={"gateway_uid": gateway_uid}, egress={"socket": egress_socket})
        path, uid = _egress_socket_of(settings), _gateway_uid_of(settings)
        if os.geteuid() in (0, uid):
            raise StartFailed("the egress process must be neither root nor the gateway's user: give it one of its own")
        check_folder(path, os.geteuid())
        config = replace(egress_config(settings, uid), check_uid=os.geteuid())
        listener = _listen(path)
        say(f"the egress process listens on {path}")
        exec_egress(PROJECT, listener, config)
    except (SettingsError, StartFailed) as error:
        say(str(error))
        return REFUSED


def become_gateway(settings: Settings, given: dict[str, Any]) -> NoReturn:
    """This process is the gateway from here on. Raises StartFailed."""
    if os.geteuid() == 0:
        raise StartFailed(
            "with BULKHEAD_PROCESS__LAUNCHER_SOCKET the gateway must not run as root: start it as the user of the "
            "launcher's BULKHEAD_PROCESS__GATEWAY_UID"
        )
    sockets, reason = ServiceSockets(), "the operator has not enabled it"
    if settings.process.enabled:
        egress = settings.egress.socket if settings.egress.allow else None
        sockets, reason = ServiceSockets(_launcher_socket_of(settings), egress), ""
    argv, environment = gateway_command(given, 0, -1, sockets, reason)
    os.execve(argv[0], argv, environment)  # noqa: S606 - this interpreter again


def check_folder(path: Path, uid: int = 0) -> None:
    """`uid` makes the socket `path`. Root changes its owner by name, and the gateway gives sockets of sandboxes to
    whoever listens. So no other user may be able to replace it, or a folder above it. Raises StartFailed."""
    folder = path.parent.absolute()
    owner = "root" if uid == 0 else f"root or uid {uid}"
    try:
        above = {*folder.parents, *folder.resolve().parents}
        bad = not _only_writer(folder, uid) or not all(_only_writer(place, uid, sticky=True) for place in above)
    except OSError as error:
        raise StartFailed(f"the socket's folder {folder} cannot be used: {error.strerror}") from error
    if bad:
        raise StartFailed(
            f"the socket's folder {folder} and those above it must belong to {owner}, and nobody else may write there"
        )


def _only_writer(folder: Path, uid: int, *, sticky: bool = False) -> bool:
    """`sticky`: others may have things of their own there, as in /tmp."""
    found = folder.stat()
    shared = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return found.st_uid in (0, uid) and (not shared or (sticky and bool(found.st_mode & stat.S_ISVTX)))


def _listen(path: Path) -> socket.socket:
    """Raises StartFailed."""
    try:
        return listen_for_gateway(path)
    except OSError as error:
        raise StartFailed(f"cannot listen on {path}: {error.strerror}") from error


def _settings(**parts: dict[str, Any]) -> Settings:
    """The options of the command line, by part of the settings, go before the environment, one by one."""
    given = {
        part: {name: value for name, value in options.items() if value is not None} for part, options in parts.items()
    }
    return load_settings(**{part: options for part, options in given.items() if options})


def _gateway_uid_of(settings: Settings) -> int:
    if settings.process.gateway_uid is None:
        raise StartFailed("set BULKHEAD_PROCESS__GATEWAY_UID or --gateway-uid to the uid of the gateway")
    return settings.process.gateway_uid


def _launcher_socket_of(settings: Settings) -> Path:
    if settings.process.launcher_socket is None:
        raise StartFailed("set BULKHEAD_PROCESS__LAUNCHER_SOCKET or --socket to the launcher's socket")
    return settings.process.launcher_socket


def _egress_socket_of(settings: Settings) -> Path:
    if settings.egress.socket is None:
        raise StartFailed("set BULKHEAD_EGRESS__SOCKET or --socket to the egress process's socket")
    return settings.egress.socket
