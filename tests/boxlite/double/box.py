"""A box: its record, its states, and what it refuses in each of them."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.boxlite.double import refusals
from tests.boxlite.double.boot import EXISTS, NOT_READY, check_image, check_sizes, tell_size
from tests.boxlite.double.create import Options
from tests.boxlite.double.faults import Faults
from tests.boxlite.double.http import Failure
from tests.boxlite.double.machine import Program
from tests.boxlite.double.run import Run
from tests.boxlite.double.settings import Settings

BASE62 = string.digits + string.ascii_letters
HOLLOW_PID = 1  # some number: of a machine that nobody can reach
WEDGED_GRACE = 0.05  # a second /stop finds that the first one has sent TERM long ago


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Box:
    def __init__(self, options: Options, folder: Path, settings: Settings, faults: Faults) -> None:
        self.id = "".join(secrets.choice(BASE62) for _ in range(12))
        self.container_id = secrets.token_hex(32)
        self.options = options
        self.status = "configured"
        self.exit_code: int | None = None
        self.created_at = self.updated_at = now()
        self.run: Run | None = None
        self.booting = False
        self.failed_boots = 0
        self.last_activity = asyncio.get_running_loop().time()
        self._folder = folder / self.id
        self._folder.mkdir(mode=0o755)
        self._settings = settings
        self._faults = faults
        self._deleted = False
        self._stale: str | None = None  # the state before a failed boot, which GET shows until the box is touched
        self._stopping = False  # also after a client hung up during /stop, until the next one
        self._hollow = 0  # says that it runs, and its server was killed while it booted; counts who asked
        self._orphaned = False
        self._lock = asyncio.Lock()
        self._stop_lock = asyncio.Lock()
        self._ends: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> bool:
        return self.run is not None or self._hollow > 0

    def view(self, status: str | None = None) -> dict[str, Any]:
        o = self.options
        code = {} if self.exit_code is None else {"exit_code": self.exit_code}
        return {
            "box_id": self.id,
            "name": o.name,
            "status": status or self.status,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "pid": self.run.machine.pid if self.run else HOLLOW_PID if self._hollow else None,
            "image": o.image if o.rootfs_path is None else f"rootfs:{o.rootfs_path}",
            "cpus": o.cpus,
            "memory_mib": o.memory_mib,
            "labels": {},
            "auto_stop": o.auto_stop,
            "auto_delete": o.auto_delete,
            "auto_resume": o.auto_resume,
            **code,
            "network": o.network,
        }

    def look(self) -> dict[str, Any]:
        """GET of this box: after a failed boot what it was before."""
        return self.view(self._stale)

    def touch(self) -> None:
        self._stale = None
        self.last_activity = asyncio.get_running_loop().time()

    async def start(self) -> None:
        """Boots when it does not run. Returns before the main command runs, which happens in the background."""
        self._refuse_while_stopping()
        await self._boot_once()
        if self.run is not None:
            self.run.go()

    async def prepare(self) -> Run:
        """For an attach to the main command of a box that never ran: everything but the command itself."""
        if not self.running and self.status != "configured":
            raise refusals.not_in_this_state(self.id, "attach to", self.status)
        await self._boot_once()
        if self.run is None:
            raise refusals.unreachable()
        return self.run

    async def wake(self, verb: str) -> Run:
        """The run for a request that implies a start, which a box with a main command refuses."""
        self._refuse_while_stopping()
        if not self.running and not self.booting:
            refusals.refuse_to_wake(self, verb)
        await self.start()
        if self._hollow:
            await self._answer_hollow()
        if self.run is not None:
            await self.run.gone()
        if self.run is None or self.run.lost:
            raise refusals.unreachable()
        if self.run.ending:
            raise Failure("internal", EXISTS)
        return self.run

    async def stop(self) -> dict[str, Any]:
        if self.booting:
            return self.view("stopped")  # and it does nothing
        async with self._stop_lock:
            if self._hollow or self.status == "failed":
                self._down("stopped")
            elif self.run is not None:
                grace = WEDGED_GRACE if self._stopping else self._settings.stop_grace
                self._stopping = True
                code = await self.run.stop(grace)
                self._stopping = False
                self._down("stopped", code)
        return self.view()

    async def delete(self, *, force: bool) -> None:
        if self.running and not force:
            raise refusals.not_removed(self.id, self.run.machine.pid if self.run else HOLLOW_PID)
        self._deleted = True
        await self._cut_off(refusals.LOST_BY_DELETE)
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """From outside, as when a microVM crashes: for a while only the clients that are attached notice."""
        if self.run is not None:
            self.run.ending = True
            self.run.machine.cut_off()

    def expect_crash(self) -> None:
        """The next thing that is cancelled is cancelled by the end of the server, not by a client."""
        self._orphaned = self.booting

    async def survive_crash(self) -> None:
        """Detached machines live on without the server; the others do not."""
        self._stopping = False
        if not self.options.detach:
            await self._cut_off("")

    def program(self, argv: list[str], env: dict[str, str], cwd: str | None, *, tty: bool) -> Program:
        executor = {"BOXLITE_EXECUTOR": f"container={self.container_id}"}
        whole = {"PATH": self._settings.path, "HOME": "/root"} | self.options.env | env | executor
        return Program(argv, whole, cwd or self.options.working_dir, self.options.user or self._settings.user, tty)

    def _refuse_while_stopping(self) -> None:
        if self._stopping:
            raise refusals.stopping()

    async def _boot_once(self) -> None:
        async with self._lock:
            if self.running:
                return
            self.booting = True
            before = self.status
            try:
                self.run = await self._boot()
                self._become("running")
            except BaseException:
                if self._orphaned:
                    self._hollow = 1
                    self._become("running")
                else:
                    self.failed_boots += 1
                    self._down("failed")
                    self._stale = before
                raise
            finally:
                self.booting = self._orphaned = False

    async def _boot(self) -> Run:
        self.exit_code = None
        await asyncio.sleep(self._settings.boot_seconds)
        self._refuse_deleted()
        if failure := self._faults.boot_failure():
            raise failure
        check_image(self.options, self._settings.missing_images)
        check_sizes(self.options)
        main = self.program(self.options.main_command, {}, None, tty=self.options.tty)
        tell_size(self.options, self._folder)
        shares = self._settings.shares_network and self.options.network["outbound"]["mode"] == "enabled"
        run = await Run.boot(self._folder, main, self.container_id, self._settings.main_seconds, shares_network=shares)
        try:
            self._refuse_deleted()
        except Failure:
            await run.power_off()
            raise
        run.when_over(lambda: self._end_later(run))
        return run

    def _refuse_deleted(self) -> None:
        """A DELETE came during the boot; the real server notices only when the boot takes too long."""
        if self._deleted:
            raise Failure("engine_unavailable", NOT_READY)

    async def _answer_hollow(self) -> None:
        self._hollow += 1
        if self._hollow == 2:
            await asyncio.sleep(self._settings.orphan_seconds)
            raise refusals.unreachable(refusals.TRANSPORT)
        raise refusals.hollow(self.container_id)

    def _end_later(self, run: Run) -> None:
        """The main command ended, or the machine did: the machine goes off, which for a while nobody sees."""
        if run is not self.run or self._stopping or self._deleted:
            return
        run.ending = True
        task = asyncio.get_running_loop().create_task(self._end(run))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _end(self, run: Run) -> None:
        await asyncio.sleep(self._settings.settle_seconds)
        code = run.exit_code
        if run is self.run and not self._stopping:
            await run.power_off()
            if run is self.run:
                self._down("stopped", code)

    async def _cut_off(self, note: str) -> None:
        if self.run is not None:
            self.run.lose_executions(note)
            await self.run.power_off()
        if self.running:
            self._down("stopped")

    def _down(self, status: str, exit_code: int | None = None) -> None:
        self.run, self._hollow = None, 0
        self.exit_code = exit_code
        self._become(status)

    def _become(self, status: str) -> None:
        self.status, self.updated_at = status, now()
