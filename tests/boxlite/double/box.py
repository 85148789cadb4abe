"""A box: its record, its states, and the machine that it has while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import string
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.boxlite.double.boot import check_image, check_sizes, main_failure
from tests.boxlite.double.create import Options
from tests.boxlite.double.execution import Execution
from tests.boxlite.double.faults import Faults
from tests.boxlite.double.http import Failure
from tests.boxlite.double.machine import CannotStart, GuestLost, Machine, NoSuchProcess, Process, Program
from tests.boxlite.double.settings import Settings

BASE62 = string.digits + string.ascii_letters
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DECISION = "That is a decision for you, not for a side effect — start the box explicitly if it is what you want."
TRANSPORT = 'status: Unknown, message: "transport error", details: [], metadata: MetadataMap { headers: {} }'
REFUSED = 'status: Unavailable, message: "Connection refused (os error 111)", details: []'
KILLED = 137


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
        self.machine: Machine | None = None
        self.main: Execution | None = None
        self.executions: list[Execution] = []  # of this boot, also those that nobody can ask for any more
        self.booting = False
        self.deleted = False
        self.last_activity = asyncio.get_running_loop().time()
        self._folder = folder / self.id
        self._settings = settings
        self._faults = faults
        self._stale: str | None = None  # the state before a failed boot, which GET shows until the box is touched
        self._stopping = False  # also after a client hung up during /stop: until the next one
        self._ending = False  # the main command is gone, or the machine is, and nobody has noticed
        self._hollow = False  # says that it runs; its server was killed while it booted
        self._orphaned = False
        self._asked_hollow = False
        self._lock = asyncio.Lock()
        self._stop_lock = asyncio.Lock()
        self._going: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> bool:
        return self.machine is not None or self._hollow

    def view(self, status: str | None = None) -> dict[str, Any]:
        o = self.options
        shown: dict[str, Any] = {
            "box_id": self.id,
            "name": o.name,
            "status": status or self.status,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "pid": self.machine.pid if self.machine else None,
            "image": f"rootfs:{o.rootfs_path}" if o.rootfs_path else o.image,
            "cpus": o.cpus,
            "memory_mib": o.memory_mib,
            "labels": {},
            "auto_stop": o.auto_stop,
            "auto_delete": o.auto_delete,
            "auto_resume": o.auto_resume,
        }
        if self.exit_code is not None:
            shown["exit_code"] = self.exit_code
        return shown | {"network": o.network}

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
        self._let_go()

    async def prepare(self) -> None:
        """For an attach to the main command of a box that never ran: everything but the command itself."""
        if not self.running and self.status != "configured":
            raise Failure("invalid_state", f"invalid state: Cannot attach to box {self.id}: it is {self.status}")
        await self._boot_once()

    async def wake(self, verb: str) -> Machine:
        """The machine for a request that implies a start, which a box with a main command refuses."""
        self._refuse_while_stopping()
        if not self.running and not self.booting:
            self._refuse_to_wake(verb)
        await self.start()
        if self._hollow:
            await self._answer_hollow()
        if self._going is not None:
            await asyncio.shield(self._going)
        if self._ending and self.machine is not None:
            if self.main is not None and self.main.exit_code == -1:
                raise Failure("upstream_unavailable", f"gRPC/tonic error: {REFUSED}, metadata: MetadataMap {{ }}")
            raise Failure("internal", "internal error: execution_exists: Execution already exists")
        if self.machine is None:
            raise Failure("upstream_unavailable", f"gRPC/tonic error: {TRANSPORT}")
        return self.machine

    async def stop(self) -> dict[str, Any]:
        if self.booting:
            return self.view("stopped")  # and it does nothing
        async with self._stop_lock:
            if self._hollow or self.status == "failed":
                self._down("stopped", None)
            elif self.machine is not None:
                await self._stop(self.machine)
        return self.view()

    async def delete(self, *, force: bool) -> None:
        if self.running and not force:
            pid = self.machine.pid if self.machine else 0
            text = (
                f"cannot remove box {self.id} with live pid Some({pid}) (status: Running). Use force=true to stop first"
            )
            raise Failure("invalid_state", f"invalid state: {text}")
        self.deleted = True
        self._lose_executions(f"Attach failed: {TRANSPORT}")
        if self.machine is not None:
            await self._power_off(self.machine)
        self._down("stopped", None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """From outside, as when the microVM crashes: for a while nobody but the clients that are attached notices."""
        if self.machine is not None:
            self._ending = True
            self.machine.kill()

    def expect_crash(self) -> None:
        """The next thing that is cancelled is cancelled by the end of the server, not by a client."""
        self._orphaned = self.booting

    async def orphan(self) -> None:
        """The server was killed. Detached machines live on, one that was booting is never finished."""
        self._stopping = False
        if self.machine is not None and not self.options.detach:
            self._lose_executions("")
            await self._power_off(self.machine)
            self._down("stopped", None)

    def program(self, argv: list[str], env: dict[str, str], cwd: str | None, *, tty: bool) -> Program:
        executor = {"BOXLITE_EXECUTOR": f"container={self.container_id}"}
        whole = {"PATH": PATH, "HOME": "/root"} | self.options.env | env | executor
        return Program(argv, whole, cwd or self.options.working_dir, self.options.user, tty)

    def _refuse_while_stopping(self) -> None:
        if self._stopping:
            text = "Handle invalidated after stop(). Use runtime.get() to get a new handle."
            raise Failure("stopped", f"stopped: {text}")

    def _refuse_to_wake(self, verb: str) -> None:
        if self.status == "failed":
            raise Failure("invalid_state", f"invalid state: Cannot {verb} box {self.id}: it is failed")
        if self.status == "stopped" and not self.options.auto_resume:
            text = f"box {self.id} is Stopped and has AutoResume disabled; start it explicitly first"
            raise Failure("conflict", text)
        if self.options.has_main_command:
            why = (
                "it is configured, and starting the box would run its main command."
                if self.status == "configured"
                else "it is stopped, and its main command has already run, and starting the box again would run it a"
                " second time."
            )
            raise Failure("invalid_state", f"invalid state: Cannot {verb} box {self.id}: {why} {DECISION}")

    def _size(self) -> None:
        """What the guest's kernel tells of its machine: asked for 64 cpus it has 16, and 14 MB more memory."""
        told = self._folder / "run"
        told.mkdir(exist_ok=True)
        cpus = min(self.options.cpus, 16)
        (told / "cpuinfo").write_text("".join(f"processor\t: {number}\n\n" for number in range(cpus)))
        (told / "meminfo").write_text(f"MemTotal:       {self.options.memory_mib * 1024 + 14_000} kB\n")

    async def _boot_once(self) -> None:
        async with self._lock:
            if self.running:
                return
            self.booting = True
            try:
                await self._boot()
            except asyncio.CancelledError:
                if self._orphaned:
                    self._hollow = True
                    self._become("running")
                else:
                    self._fail()
                raise
            except Failure:
                self._fail()
                raise
            finally:
                self.booting = self._orphaned = False

    async def _boot(self) -> None:
        self.exit_code = None
        await asyncio.sleep(self._settings.boot_seconds)
        if failure := self._faults.boot_failure():
            raise failure
        check_image(self.options, self._settings.missing_images)
        check_sizes(self.options)
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o755)
        self._size()
        machine = await Machine.boot(self._folder)
        program = self.program(self.options.main_command, {}, None, tty=self.options.tty)
        try:
            process = await machine.prepare(program)
        except CannotStart as error:
            await machine.power_off()
            raise main_failure(error, program, self.container_id) from error
        except BaseException:
            await machine.power_off()
            raise
        if self.deleted:
            await machine.power_off()
            text = "timed out after 30s waiting for it to become ready"
            raise Failure("engine_unavailable", f"engine reported an error: {text}")
        self.machine = machine
        self._going, self._ending, self._hollow = None, False, False
        self.executions = []
        self.main = Execution(self.container_id, machine, process, main=True)
        self.executions.append(self.main)
        process.exited.add_done_callback(lambda _: self._spawn(self._main_ended(machine, process)))
        self._become("running")

    def _let_go(self) -> None:
        machine = self.machine
        if self._going is not None or machine is None:
            return

        async def go() -> None:
            await asyncio.sleep(self._settings.main_seconds)
            with contextlib.suppress(CannotStart, GuestLost):  # only the server's log would tell
                await machine.run()

        self._going = self._spawn(go())

    async def _answer_hollow(self) -> None:
        if not self._asked_hollow:
            self._asked_hollow = True
            await asyncio.sleep(self._settings.orphan_seconds)
            raise Failure("upstream_unavailable", f"gRPC/tonic error: {TRANSPORT}")
        raise Failure("internal", f"internal error: spawn_failed: Container not found: {self.container_id}")

    async def _stop(self, machine: Machine) -> None:
        again, self._stopping = self._stopping, True
        assert self.main is not None
        self._lose_executions("", but=self.main)
        if self._going is not None:
            await asyncio.shield(self._going)
        code: int | None = None
        with contextlib.suppress(NoSuchProcess, GuestLost, TimeoutError):
            self.main.end_stdin()
            await self.main.signal(15)
            await asyncio.wait_for(self.main.leader_ended(), 0.05 if again else self._settings.stop_grace)
        code = self.main.leader_code
        if not self._ending:
            code = KILLED if code is None else code
        await self._power_off(machine)
        self._stopping = False
        self._down("stopped", code)

    async def _main_ended(self, machine: Machine, process: Process) -> None:
        """By itself: the machine goes off, which for a while nobody sees."""
        if machine is not self.machine or self._stopping or self.deleted:
            return
        self._ending = True
        lost = process.exited.exception() is not None
        await asyncio.sleep(self._settings.settle_seconds)
        if machine is not self.machine or self._stopping:
            return
        code = None if lost or self.main is None else self.main.leader_code
        await self._power_off(machine)
        if machine is self.machine:
            self._down("stopped", code)

    async def _power_off(self, machine: Machine) -> None:
        await asyncio.shield(self._spawn(machine.power_off()))

    def _lose_executions(self, note: str, but: Execution | None = None) -> None:
        for execution in self.executions:
            if execution is not but:
                execution.lose(note)

    def _fail(self) -> None:
        before = self.status
        self._down("failed", None)
        self._stale = before if before != "failed" else None

    def _down(self, status: str, exit_code: int | None) -> None:
        self.machine, self._going = None, None
        self._hollow = self._asked_hollow = self._ending = False
        self.exit_code = exit_code
        self._become(status)

    def _become(self, status: str) -> None:
        self.status, self.updated_at = status, now()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
