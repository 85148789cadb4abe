"""A null backend whose sandboxes keep what is put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from app.core.backend import Capability
from app.core.errors import BulkheadError
from app.core.files import ArchiveEntry, EntryKind
from app.core.models import SandboxSpec
from tests.null_backend import CAPABILITIES, NullBackend, NullSandbox


class Memory:
    """`unpack` and `write` of the contract: path to mode and content. `refused`: paths at which an error is raised."""

    def __init__(self) -> None:
        self.kept: dict[bytes, tuple[int, bytes]] = {}
        self.directories: list[bytes] = []
        self.refused: dict[bytes, BulkheadError] = {}
        self.calls: list[str] = []

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        self.calls.append("unpack")
        entry: ArchiveEntry | None = None
        async for item in content:
            if isinstance(item, bytes):
                assert entry is not None
                mode, before = self.kept[path + b"/" + entry.name]
                self.kept[path + b"/" + entry.name] = (mode, before + item)
                continue
            entry = item
            name = path + b"/" + entry.name
            self._check(name)
            if entry.kind is EntryKind.DIRECTORY:
                self.directories.append(name)
            else:
                assert name.rpartition(b"/")[0] in {path, *self.directories}, "its parent comes first"
                self.kept[name] = (entry.mode, b"")

    async def write(self, path: bytes, content: AsyncIterator[bytes], *, mode: int = 0o644, check: Any = None) -> bool:
        self.calls.append("write")
        self._check(path)
        self.kept[path] = (mode, b"".join([piece async for piece in content]))
        return True

    def _check(self, path: bytes) -> None:
        if path in self.refused:
            raise self.refused[path]


class KeepingSandbox(NullSandbox):
    @property
    def files(self) -> Any:
        assert isinstance(self.backend, KeepingBackend)
        return self.backend.memory


class KeepingBackend(NullBackend):
    def __init__(self, **options: Any) -> None:
        super().__init__(capabilities=CAPABILITIES | {Capability.FILES}, **options)
        self.memory = Memory()

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> NullSandbox:
        room = await super().create(sandbox_id, spec)
        room.__class__ = KeepingSandbox
        return room
