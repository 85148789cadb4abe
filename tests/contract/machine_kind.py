"""The runtime boxlite under the contract suite, with the real server and real microVMs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

from app.backends.boxlite.backend import BoxliteBackend
from app.backends.boxlite.inside import MARK
from app.core.backend import Backend
from app.settings.boxlite import BoxliteSettings
from tests.boxlite.machine import IMAGE as LAYOUT
from tests.boxlite.machine import Machine
from tests.contract.boxlite_kind import IMAGE

_COUNT = f"n=0; for f in /proc/[0-9]*/environ; do tr '\\0' '\\n' <$f | grep -q '^{MARK}=' && n=$((n+1)); done; echo $n"


class MachineRuntime:
    """`machine` is set by the fixture that starts it."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self._instances: dict[int, str] = {}

    def check(self) -> None:
        """The fixture `machine` has done it."""

    @property
    def _started(self) -> Machine:
        assert self.machine is not None
        return self.machine

    async def open(self) -> Backend:
        instance = secrets.token_hex(6)
        images: Mapping[str, object] = {IMAGE: {"rootfs_path": LAYOUT}}
        told = {
            "url": self._started.url,
            "api_key": self._started.key,
            "images": images,
            "default_image": IMAGE,
            "boots": 1,
        }
        backend = BoxliteBackend(BoxliteSettings.model_validate(told), instance)
        self._instances[id(backend)] = instance
        return backend

    def left(self, backend: BoxliteBackend) -> list[str]:
        prefix = f"bh-{self._instances[id(backend)]}-"
        boxes = self._started.call("GET", "/v1/boxes").json()["boxes"]
        return [box["name"] for box in boxes if (box["name"] or "").startswith(prefix)]

    async def processes(self, backend: BoxliteBackend, sandbox_id: str) -> int:
        (sandbox,) = [s for s in backend._sandboxes.values() if s.id == sandbox_id]
        said = await sandbox.inside._shell(_COUNT)
        return int(said.out)

    async def lose(self, backend: BoxliteBackend, sandbox_id: str) -> None:
        (sandbox,) = [s for s in backend._sandboxes.values() if s.id == sandbox_id]
        await asyncio.to_thread(self._started.kill_box, sandbox.box_id)
