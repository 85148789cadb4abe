"""One box: its executions, its loss, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.client import upstream_of
from app.backends.boxlite.egress import BoxEgress, ProxyCredential
from app.backends.boxlite.ending import KILLED, NO_WORKDIR, start_failed
from app.backends.boxlite.execution import BoxliteExecution
from app.backends.boxlite.files import BoxliteFiles
from app.backends.boxlite.health_check import HealthCheck
from app.backends.boxlite.inside import MARK, WRAPPER_MARK, BoxCommands
from app.backends.boxlite.network import NO_HTTP
from app.backends.boxlite.script_runner import ScriptRunner
from app.backends.boxlite.server import BoxliteServer, SpawnFailed, is_silent
from app.backends.boxlite.turns import PendingLimit
from app.backends.boxlite.wrapped import wrapped_command
from app.core.backend import Logs
from app.core.commands import is_merged
from app.core.errors import (
    BackendFailure,
    BackendTimeout,
    BulkheadError,
    Conflict,
    UnsupportedByRuntime,
    WrongState,
)
from app.core.files import Files
from app.core.models import Command, ExecutionLimits, Exit, ExitReason, OutputMode, ResourceUsage, Stdin
from app.core.network_log import NetworkLog
from app.core.network_rules import NetworkRule
from app.core.tasks import Tasks, hand_over
from app.core.workdirs import may_be_made

LATE_SECONDS = 15.0  # the server's own timeout comes after ours, and only if we are gone


class BoxliteSandbox:
    """`on_end` is called once, when nothing of it is left, or when the backend has to remove it. `tasks` are the
    backend's."""

    def __init__(
        self,
        server: BoxliteServer,
        health_check: HealthCheck,
        tasks: Tasks,
        sandbox_id: str,
        box_id: str,
        stdin_limit: int,
        on_end: Callable[[], None],
        disk_bytes: int,
    ) -> None:
        self._tasks = tasks
        self._server, self._health_check, self._stdin_limit, self._on_end = server, health_check, stdin_limit, on_end
        self.id, self.box_id = sandbox_id, box_id
        self.inside, self.asks = BoxCommands(server, box_id), PendingLimit()
        self.network_log: NetworkLog | None = None
        self._egress: BoxEgress | None = None
        self._proxy: Mapping[str, str] = {}  # in the environment of commands that do not set it
        self.files: Files = BoxliteFiles(ScriptRunner(server, self, tasks, disk_bytes))
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.since = loop.time()
        self._receipt: Mapping[str, Any] = {}
        self._inexact = ""  # why output cannot be exact
        self._executions: list[BoxliteExecution] = []
        self._begun: set[asyncio.Future[None]] = set()  # of commands whose start is under way
        self._lost: asyncio.Future[str] = loop.create_future()
        self._ending: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] = loop.create_future()

    # --- the contract

    @property
    def receipt(self) -> Mapping[str, Any]:
        return self._receipt

    def prove(self, receipt: Mapping[str, Any], inexact: str) -> None:
        """`inexact`: why output cannot be exact here; empty: it is."""
        self._receipt, self._inexact = receipt, inexact
        self.since = self._loop.time()

    async def open_network(
        self, egress: BoxEgress, credential: ProxyCredential, rules: Sequence[NetworkRule], client: str
    ) -> None:
        """Has the egress process serve the box. `client`: whose sandbox it is. Raises BackendUnavailable."""
        self._egress, self._proxy, self.network_log = egress, credential.environment, NetworkLog()
        await egress.open(credential, rules, self.network_log, client)

    async def close_network(self) -> None:
        if self._egress is not None:
            await self._egress.close(self.id)

    async def execute(self, execution_id: str, command: Command, logs: Logs) -> BoxliteExecution:
        self.check_alive()
        exact = self._is_exact(command)
        if not exact:
            logs.mark_inexact()
        execution = BoxliteExecution(self._server, self, execution_id, command, logs, self._stdin_limit, exact=exact)
        self._executions = [known for known in self._executions if not known.ended]
        self._executions.append(execution)
        begun: asyncio.Future[None] = self._loop.create_future()
        starting = hand_over(self._start(execution, execution_id, command, exact=exact), begun, self._tasks.spawn)
        self._begun.add(begun)
        try:
            await begun
        except asyncio.CancelledError:
            starting.add_done_callback(lambda _: self._tasks.spawn(_kill(execution)))
            raise
        finally:
            self._begun.discard(begun)
        return execution

    def _is_exact(self, command: Command) -> bool:
        """Raises UnsupportedByRuntime."""
        wanted = "exact output" if command.output_mode is OutputMode.EXACT else ""
        if is_merged(command):  # the server gives a command two pipes; the wrapper makes one of them
            wanted = "merged output"
        if command.limits != ExecutionLimits():  # the wrapper sets them
            wanted = "limits of an execution"
        if wanted and command.tty is not None:
            raise UnsupportedByRuntime(f"{wanted} of a terminal", RUNTIME)
        if wanted and command.output_mode is OutputMode.PLAIN:
            raise UnsupportedByRuntime(f"{wanted} where output is plain", RUNTIME)
        if wanted and self._inexact:
            raise UnsupportedByRuntime(f"{wanted} in this image: it {self._inexact}", RUNTIME)
        return command.output_mode is not OutputMode.PLAIN and command.tty is None and not self._inexact

    async def _start(self, execution: BoxliteExecution, mark: str, command: Command, *, exact: bool) -> None:
        env = {**self._proxy_for(command.env), **command.env, MARK: mark}
        what: dict[str, object] = {"command": command.argv[0], "args": list(command.argv[1:]), "env": env}
        if exact:
            stdin, merged = command.stdin is Stdin.OPEN, is_merged(command)
            wrapped = wrapped_command(command.argv, env, stdin=stdin, merged=merged, limits=command.limits)
            what = {**wrapped, "env": {WRAPPER_MARK: mark}}
        body = {
            **what,
            "working_dir": command.workdir,
            "tty": command.tty is not None,
            "timeout_seconds": command.timeout_seconds + LATE_SECONDS,
        }
        try:
            execution.begin(await self._spawned(body))
        except SpawnFailed as failed:
            execution.fail_start(start_failed(command, str(failed)))
        except BackendFailure as error:
            self._health_check.note(error)
            execution.fail_start(Exit(ExitReason.LOST, detail=str(error)))
            if isinstance(error, BackendTimeout):  # it may have been started, and nobody would ever end it
                await self.kill_when_possible(mark)
            elif not is_silent(error) and upstream_of(error).code != "invalid_argument":
                await self._blame_box(error)
            raise
        if self._over.done():
            execution.on_sandbox_end(KILLED)

    def _proxy_for(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """What tells a command of its proxy, but for what its own environment says in either case of letters."""
        given = {name.lower() for name in env}
        return {name: value for name, value in self._proxy.items() if name.lower() not in given}

    async def _spawned(self, body: Mapping[str, Any]) -> str:
        """Its id on the server. Raises SpawnFailed, BackendFailure."""
        try:
            return await self._server.execute(self.box_id, body)
        except SpawnFailed as failed:
            workdir: str = body["working_dir"]
            if NO_WORKDIR not in str(failed) or not may_be_made(workdir):
                raise
        try:
            await self.files.make_directory(workdir.encode())
        except BulkheadError as error:
            raise SpawnFailed(f"{NO_WORKDIR}: {error}") from error
        return await self._server.execute(self.box_id, body)

    async def _blame_box(self, error: BackendFailure) -> None:
        """Raises WrongState when the box has ended."""
        try:
            why = await self.look()
        except BackendFailure:
            return
        if why is not None:
            raise WrongState("failed", why) from error

    async def blamed(self, error: BackendFailure) -> BulkheadError:
        """WrongState when the box has ended, else the error itself."""
        self._health_check.note(error)
        try:
            if not is_silent(error):
                await self._blame_box(error)
            self.check_alive()
        except WrongState as ended:
            return ended
        return error

    def check_alive(self) -> None:
        if self._lost.done():
            raise WrongState("failed", f"the sandbox has ended: {self._lost.result()}")
        if self._ending is not None or self._over.done():
            raise WrongState("destroyed", "the sandbox has ended")

    # --- loss

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    def lose(self, why: str) -> None:
        if self._ending is not None or self._over.done() or self._lost.done():
            return
        self._lost.set_result(why)
        for execution in self._executions:
            execution.on_sandbox_end(Exit(ExitReason.LOST, detail=why))

    async def look(self, *, patient: bool = True) -> str | None:
        """Returns why the box has ended, or None when it runs. Raises a BackendFailure when this cannot be found
        out."""
        seconds = self._server.timeouts.status_lag
        until = self._loop.time() + (seconds if patient else 0)
        while not self._lost.done() and self._ending is None:
            try:
                box = await self._server.find(self.box_id)
            except BackendFailure as error:
                self._health_check.note(error)
                raise
            if box is None or box.over:
                self.lose("its box is gone" if box is None else f"its box is {box.status}")
            elif self._loop.time() >= until:
                return None
            else:
                await asyncio.sleep(seconds / 8)
        return self._lost.result() if self._lost.done() else None

    async def server_there(self) -> None:
        self._health_check.hurry()
        await self._health_check.there()

    async def kill_when_possible(self, mark: str) -> None:
        """Returns after the first attempt, and continues in the background if that failed."""
        tried = asyncio.Event()
        self._tasks.spawn(self._remove(mark, tried))
        await tried.wait()

    async def _remove(self, mark: str, tried: asyncio.Event) -> None:
        for pause in self._server.timeouts.backoff:
            if self._over.done() or self._lost.done():
                break
            try:
                await self.inside.sweep(mark)
                break
            except BackendFailure as error:
                self._health_check.note(error)
            tried.set()
            await asyncio.sleep(pause)
            await self.server_there()
        tried.set()

    async def usage(self) -> ResourceUsage:
        """Nobody who is believed knows: what runs in a box says nothing about itself here."""
        self.check_alive()
        return ResourceUsage()

    async def pause(self) -> None:
        raise UnsupportedByRuntime("pause", "boxlite")

    async def resume(self) -> None:
        raise UnsupportedByRuntime("pause", "boxlite")

    async def change_network(self, rules: Sequence[NetworkRule]) -> None:
        self.check_alive()
        if self._egress is None:
            raise UnsupportedByRuntime("network_proxy", "boxlite")
        if any(rule.http for rule in rules):
            raise Conflict(NO_HTTP)
        told = {**self._receipt.get("network", {}), "allow": [rule.as_dict() for rule in rules]}
        self._receipt = {**self._receipt, "network": told}
        await self._egress.change(self.id, rules)

    # --- the end

    async def destroy(self) -> None:
        if self._over.done():
            return
        if self._ending is None:
            self._ending = self._loop.create_task(self._destroy())
        await asyncio.shield(self._ending)

    async def _destroy(self) -> None:
        await self.close_network()
        try:
            await self._server.remove(self.box_id)
        except BackendFailure as error:
            self._health_check.note(error)
            if not self._lost.done():
                self._ending = None
                raise
            # Lost, and its server with it: the backend removes the box when the server is back.
        self._over.set_result(None)
        for begun in self._begun:
            if not begun.done():
                begun.set_exception(WrongState("destroyed", "the sandbox has ended"))
        for execution in self._executions:
            execution.on_sandbox_end(KILLED)
        self._executions.clear()
        self._on_end()

    @property
    def ending(self) -> bool:
        return self._ending is not None


async def _kill(execution: BoxliteExecution) -> None:
    try:
        await execution.kill()
    except BackendFailure:
        return  # the box ends with its sandbox
