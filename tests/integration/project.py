"""The compose file, unchanged, with an .env of the test's own: in a copy, as its users have one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.service import PROJECT

TAG = "test"
IMAGES = tuple(f"bulkhead-{name}:{TAG}" for name in ("gateway", "launcher", "egress", "boxlite"))
PARTS = ("docker-compose.yml", "Dockerfile", ".dockerignore", "app", "deploy", "requirements")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # this host may be behind a proxy that inspects TLS
KEY_FILE = "/var/lib/bulkhead/api-key"
OURS = ("BULKHEAD_", "BOXLITE_", "DOCKER_", "COMPOSE_")  # what a developer's environment says of these is not meant


class Project:
    """`client` says which engine, `settings` is the .env."""

    def __init__(self, folder: Path, client: Mapping[str, str], settings: Mapping[str, str]) -> None:
        self.folder, self._client = folder, client
        folder.mkdir()
        for name in PARTS:
            original = PROJECT / name
            if original.is_dir():
                shutil.copytree(original, folder / name, ignore=shutil.ignore_patterns("__pycache__", "given"))
            else:
                shutil.copy(original, folder)
        self.configure(settings)

    def configure(self, settings: Mapping[str, str]) -> None:
        self.settings = {"TAG": TAG, **settings}
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        (self.folder / ".env").write_text("".join(lines))

    def compose(self, *arguments: str, seconds: float = 900) -> str:
        """Its output; it must not fail."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        done = subprocess.run(
            ["docker", "compose", "--ansi=never", *arguments],
            cwd=self.folder,
            env={**clean, **self._client},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            more = "" if arguments[0] in ("logs", "ps") else self.compose("logs", "--tail=20") + self._health()
            said = f"{done.stdout[-1000:]}{done.stderr[-3000:]}"
            raise AssertionError(f"docker compose {' '.join(arguments)}: {said}\n{more}")
        return done.stdout

    def _health(self) -> str:
        """What the last health checks of the containers said, and how long they took."""
        ask = ["docker", "inspect", "--format={{.Name}} {{json .State.Health}}", *self.compose("ps", "-aq").split()]
        return subprocess.run(
            ask, env={**os.environ, **self._client}, capture_output=True, text=True, timeout=600, check=False
        ).stdout

    def build(self, base: str, *services: str) -> None:
        trusted = {"CA_BUNDLE": str(CERTIFICATES)} if CERTIFICATES.exists() else {}
        self.configure(self.settings | {"BASE": base} | trusted)
        self.compose("build", *services, seconds=1800)

    def key(self) -> str:
        """The way that the log tells."""
        told = f"docker compose exec gateway cat {KEY_FILE}"
        assert told in self.compose("logs", "gateway")
        return self.compose("exec", "-T", *told.split()[3:]).strip()
