"""`bulkhead serve`: gateway, launcher and egress process under one supervisor, or the gateway alone if the others are
services of their own."""

from __future__ import annotations

from typing import Any

from app.serving.messages import say
from app.serving.restarting import StartFailed
from app.serving.slot import NoSlot
from app.serving.standalone import become_gateway
from app.serving.supervisor import REFUSED, Supervisor
from app.settings import SettingsError, load_settings


def serve(**options: Any) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit status. `options` are host, port and data."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = load_settings(**given)
        if settings.process.launcher_socket is not None:
            become_gateway(settings, given)
        if settings.egress.socket is not None:
            raise StartFailed(
                "BULKHEAD_EGRESS__SOCKET is for a gateway whose launcher is a service of its own too: set "
                "BULKHEAD_PROCESS__LAUNCHER_SOCKET, or leave both out"
            )
        return Supervisor(settings, given).run()
    except (SettingsError, NoSlot, StartFailed) as error:
        say(str(error))
        return REFUSED
