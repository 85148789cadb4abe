"""`bulkhead serve`: gateway and launcher under one supervisor, or the gateway alone where the launcher is a service of
its own."""

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
        return Supervisor(settings, given).run()
    except (SettingsError, NoSlot, StartFailed) as error:
        say(str(error))
        return REFUSED
