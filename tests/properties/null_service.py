"""The gateway as it is served, over the backend without isolation: `python -m tests.properties.null_service serve ...`.

SIGUSR1 makes it write what was not given back into the file `alive` of its data folder, as a JSON list.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from app.core.policy import DEFAULT_PROFILES
from app.serving.gateway import bind, build, open_spill
from app.settings import load_settings
from app.telemetry import Telemetry
from tests.null_backend import NullBackend


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    settings = load_settings(port=given.port, data=given.data)
    backend = NullBackend()
    spill = open_spill(settings, -1)
    server = build(settings, Telemetry(), settings.key_names(), DEFAULT_PROFILES, spill, [backend])

    def tell(*_: object) -> None:
        told = given.data / "alive.new"
        told.write_text(json.dumps(backend.alive))
        told.rename(given.data / "alive")

    signal.signal(signal.SIGUSR1, tell)
    server.run([bind(settings.host, settings.port)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
