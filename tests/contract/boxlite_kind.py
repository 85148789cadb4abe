"""The runtime boxlite under the contract suite: a double of the server whose boxes really run commands."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from app.backends.boxlite.backend import BoxliteBackend
from app.backends.boxlite.inside import MARK
from app.core.backend import Backend
from app.core.limits import Limits
from app.core.models import SandboxSpec, Storage
from app.core.policy import Policy
from app.settings.boxlite import BoxliteSettings
from tests.boxlite.double import Answer, Double, Route
from tests.boxlite.double.machine import Machine, NoGuest
from tests.boxlite.processes import environments
from tests.require import require

IMAGE = "busybox"
SPEC = SandboxSpec("boxlite", Limits(cpus=1, memory_mib=64, disk_mib=1024), Policy(), image=IMAGE, storage=Storage.DISK)
INSTANCE = "0123456789ab"


def settings_for(double: Double, **changes: object) -> BoxliteSettings:
    return BoxliteSettings.model_validate(
        {
            "url": double.url,
            "api_key": double.key,
            "images": {IMAGE: {"rootfs_path": "/images/busybox"}},
            "default_image": IMAGE,
            **changes,
        }
    )


class DoubledBackend(BoxliteBackend):
    """With the double that it speaks to, which ends with it."""

    def __init__(self, double: Double, **changes: object) -> None:
        super().__init__(settings_for(double, **changes), INSTANCE)
        self.double = double

    async def aclose(self) -> None:
        await super().aclose()
        await self.double.__aexit__(None, None, None)


class BoxliteRuntime:
    def __init__(self) -> None:
        self._refused: str | None = None

    def check(self) -> None:
        if self._refused is None:
            self._refused = asyncio.run(_why_not())
        require("namespaces", not self._refused, f"boxes of the double are made of namespaces: {self._refused}")

    async def open(self) -> Backend:
        double = await Double().__aenter__()
        return DoubledBackend(double)

    def left(self, backend: DoubledBackend) -> list[str]:
        boxes = [f"box {box.options.name}" for box in backend.double.boxes]
        return boxes + [f"process {pid}" for pid in environments(backend.double)]

    async def processes(self, backend: DoubledBackend, sandbox_id: str) -> int:
        return sum(1 for environment in environments(backend.double).values() if f"{MARK}=".encode() in environment)

    async def lose(self, backend: DoubledBackend, sandbox_id: str) -> None:
        (box,) = [box for box in backend.double.boxes if (box.options.name or "").endswith(sandbox_id)]
        backend.double.kill_box(box.id)

    def break_create(self, backend: DoubledBackend) -> None:
        backend.double.faults.on(Route.START, Answer.failure("engine_unavailable", "the shim died"))


async def _why_not() -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            machine = await Machine.boot(Path(folder))
        except NoGuest as error:
            return str(error)
        await machine.power_off()
    return ""
