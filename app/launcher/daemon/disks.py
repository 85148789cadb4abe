"""The disks of sandboxes: whether there is room for one, and who makes it."""

from __future__ import annotations

import errno
import os
import select

from app.launcher.config import Config
from app.launcher.daemon.checks import Refusal
from app.launcher.daemon.disk_image import USABLE_OF_8, image_bytes
from app.launcher.daemon.disk_maker import DiskMaker, DiskResult
from app.launcher.daemon.loop_storage import LAYER, LEAST_BYTES, LoopStorage, StorageError
from app.launcher.daemon.sandbox_process import SandboxProcess

_AT_ONCE = 4  # that are being made
_TEMPLATES = 8  # empty file systems that are kept, for the sizes used last: 172 to 176 KiB each, on the operator's disk
_PROBE_SECONDS = 10.0


def try_one(storage: LoopStorage, owner: int) -> tuple[DiskMaker, DiskResult]:
    """Makes the smallest disk for `owner`, a uid of the host, and throws it away. The child may still be doing that. A
    full disk is told as success: it may have room later. Raises OSError."""
    maker = DiskMaker(storage, -1, LEAST_BYTES, owner, None)
    result = maker.wait(_PROBE_SECONDS)
    if result.errno == errno.ENOSPC:
        result.errno = 0
    return maker, result


class Disks:
    """`storage` is what the host has for disks, or what it lacks. Then, or when no disk can be made of it, `lacks` says
    why. `poll` belongs to the loop, which calls `hear` when a child has ended."""

    def __init__(self, config: Config, storage: LoopStorage | StorageError, poll: select.poll) -> None:
        self._poll, self._reserve_bytes = poll, config.storage_reserve_bytes
        self._templates: dict[int, int] = {}  # usable bytes -> descriptor; the one used last comes last
        self._makers: dict[int, tuple[DiskMaker, SandboxProcess | None]] = {}  # by pidfd
        self._waiting: list[SandboxProcess] = []
        self._storage, self.lacks = self._usable(storage, config.uid_first)

    def _usable(self, storage: LoopStorage | StorageError, owner: int) -> tuple[LoopStorage | None, str]:
        if isinstance(storage, StorageError):
            return None, f"{storage.sentence}: {storage.cure}"
        try:
            maker, result = try_one(storage, owner)
        except OSError as error:
            storage.close()
            return None, f"no process makes a disk: {error.strerror}"
        self._add(maker, None)
        if result.template >= 0:
            self._keep(LEAST_BYTES, result.template)
        if result.errno:
            storage.close()
            return None, f"{result.sentence}: {result.cure}"
        return storage, ""

    def check(self, usable_bytes: int) -> None:
        """Raises Refusal where no disk can be made, or not one more of this size. Nothing was made by then.

        The room of a disk that is being made may be reserved already, or not yet. Here it counts as reserved, and
        `begin` finds out."""
        if self._storage is None:
            raise Refusal(f"layer:{LAYER}", errno.ENOSYS, self.lacks)
        if usable_bytes < LEAST_BYTES:
            raise Refusal("plan", errno.ERANGE, f"disk is {usable_bytes}, the floor {LEAST_BYTES}")
        left = self._left(self._storage, [sandbox.plan.disk_bytes for sandbox in self._waiting])
        if image_bytes(usable_bytes) > left:
            raise Refusal("storage", errno.ENOSPC, _no_room(usable_bytes, left))

    def _left(self, storage: LoopStorage, begun: list[int]) -> int:
        """Bytes above the reserve, when images for these usable bytes are reserved as well."""
        return storage.free_bytes - sum(map(image_bytes, begun)) - self._reserve_bytes

    def usable_bytes(self, made: list[int]) -> int:
        """What all disks together can hold: those of these usable bytes, and as many more as fit above the reserve."""
        if self._storage is None:
            return 0
        return max(0, self._left(self._storage, []) + sum(map(image_bytes, made))) * USABLE_OF_8 // 8

    @property
    def making(self) -> bool:
        """Whether a disk is being made."""
        return bool(self._makers)

    def begin(self, sandbox: SandboxProcess) -> None:
        """The sandbox's clone gets its disk when it is made. If it cannot be made, the sandbox is killed, and its
        failure says why."""
        self._waiting.append(sandbox)
        self._go_on()

    def knows(self, descriptor: int) -> bool:
        return descriptor in self._makers

    def hear(self, descriptor: int) -> None:
        """Takes what a child has said that has ended."""
        maker, sandbox = self._makers.pop(descriptor)
        self._poll.unregister(descriptor)
        result = maker.reap()
        if result.template >= 0:
            self._keep(maker.usable_bytes, result.template)
        if result.errno and sandbox is not None:
            _fail(sandbox, result.errno, result.sentence)
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and len(self._makers) < _AT_ONCE and self._storage is not None:
            sandbox = self._waiting[0]
            size = sandbox.plan.disk_bytes
            left = self._left(self._storage, [maker.usable_bytes for maker, _ in self._makers.values()])
            fits = image_bytes(size) <= left
            if not fits and self._makers:
                return  # one of them may count twice; when it has ended, what is free is exact
            self._waiting.pop(0)
            if sandbox.killed or sandbox.pidfd < 0:
                continue
            if not fits:
                _fail(sandbox, errno.ENOSPC, _no_room(size, left))
                continue
            try:
                maker = DiskMaker(self._storage, self._template(size), size, sandbox.uid, sandbox.channel)
            except OSError as error:
                _fail(sandbox, error.errno or errno.EIO, f"no process for it: {error.strerror}")
                continue
            self._add(maker, sandbox)

    def _add(self, maker: DiskMaker, sandbox: SandboxProcess | None) -> None:
        self._makers[maker.pidfd] = maker, sandbox
        self._poll.register(maker.pidfd, select.POLLIN)

    def _template(self, usable_bytes: int) -> int:
        template = self._templates.pop(usable_bytes, -1)
        if template >= 0:
            self._templates[usable_bytes] = template
        return template

    def _keep(self, usable_bytes: int, template: int) -> None:
        if usable_bytes in self._templates:  # two children made one at the same moment
            return os.close(template)
        self._templates[usable_bytes] = template
        if len(self._templates) > _TEMPLATES:
            os.close(self._templates.pop(next(iter(self._templates))))
        return None


def _no_room(usable_bytes: int, left: int) -> str:
    return f"it needs {image_bytes(usable_bytes)} bytes, and {max(0, left)} are left above the reserve"


def _fail(sandbox: SandboxProcess, number: int, sentence: str) -> None:
    if sandbox.creating is not None and sandbox.failure is None:
        sandbox.failure = ("storage", number, sentence)
        sandbox.kill()
