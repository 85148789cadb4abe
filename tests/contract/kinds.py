"""The backends that the contract suite runs against. To add one, append a `Kind` to `KINDS`, and nothing else.

A `Kind` says how to open the backend, which argv does what inside it, and how to look from outside at what is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.backends.boxlite.inside import MARK
from app.backends.process.plan import BASE_ENVIRONMENT
from app.core.backend import Backend
from app.core.errors import LaunchFailed
from app.core.limits import Limits
from app.core.models import Command, OnOutputLimit, SandboxSpec, Stdin, Terminal
from app.core.policy import Policy
from tests.contract.boxlite_kind import SPEC as BOXLITE_SPEC
from tests.contract.boxlite_kind import BoxliteRuntime
from tests.contract.machine_kind import MachineRuntime
from tests.contract.process_kind import ProcessRuntime
from tests.null_backend import NullBackend, pattern

SPEC = SandboxSpec("process", Limits(memory_mib=64, processes=32, disk_mib=16), Policy())


class Programs(Protocol):
    """What the suite runs, as argv. `printed` is what `print` prints."""

    def echo(self, text: str) -> tuple[str, ...]: ...
    def err(self, text: str) -> tuple[str, ...]: ...
    def cat(self) -> tuple[str, ...]: ...
    def env(self) -> tuple[str, ...]: ...
    def pwd(self) -> tuple[str, ...]: ...
    def exit(self, code: int) -> tuple[str, ...]: ...
    def print(self, size: int) -> tuple[str, ...]: ...
    def printed(self, size: int) -> bytes: ...
    def both(self, size: int) -> tuple[str, ...]:
        """`size` bytes of `printed` on each channel."""

    def spew(self) -> tuple[str, ...]: ...
    def sleep(self) -> tuple[str, ...]: ...
    def missing(self) -> tuple[str, ...]: ...
    def trap_usr1(self) -> tuple[str, ...]:
        """Prints `ready`, then SIGUSR1 for each one it gets."""

    def sizes(self) -> tuple[str, ...]:
        """On a terminal: prints `ready`, then `size` whenever it has another size."""

    def size(self, rows: int, cols: int) -> bytes: ...

    def close_stdin(self) -> tuple[str, ...]:
        """Closes its stdin and runs on."""

    def daemon(self, code: int) -> tuple[str, ...]:
        """Leaves a process in a session of its own, without our pipes, and ends."""

    def holder(self, code: int) -> tuple[str, ...]:
        """Leaves a process that holds stdout and stderr open, and ends."""

    def link(self, target: str, path: str) -> tuple[str, ...]:
        """Makes a symbolic link."""

    def fifo(self, path: str) -> tuple[str, ...]: ...
    def show(self, path: str) -> tuple[str, ...]:
        """Prints a file."""


class NullPrograms:
    def echo(self, text: str) -> tuple[str, ...]:
        return ("echo", text)

    def err(self, text: str) -> tuple[str, ...]:
        return ("err", text)

    def cat(self) -> tuple[str, ...]:
        return ("cat",)

    def env(self) -> tuple[str, ...]:
        return ("env",)

    def pwd(self) -> tuple[str, ...]:
        return ("pwd",)

    def exit(self, code: int) -> tuple[str, ...]:
        return ("exit", str(code))

    def print(self, size: int) -> tuple[str, ...]:
        return ("print", str(size))

    def printed(self, size: int) -> bytes:
        return pattern(size)

    def both(self, size: int) -> tuple[str, ...]:
        return ("both", str(size))

    def spew(self) -> tuple[str, ...]:
        return ("spew",)

    def sleep(self) -> tuple[str, ...]:
        return ("sleep",)

    def missing(self) -> tuple[str, ...]:
        return ("missing",)

    def trap_usr1(self) -> tuple[str, ...]:
        return ("trap", "SIGUSR1")

    def sizes(self) -> tuple[str, ...]:
        return ("trap", "SIGWINCH")

    def size(self, rows: int, cols: int) -> bytes:
        return b"%dx%d\n" % (rows, cols)

    def close_stdin(self) -> tuple[str, ...]:
        return ("close-stdin",)

    def daemon(self, code: int) -> tuple[str, ...]:
        return ("daemon", "exit", str(code))

    def holder(self, code: int) -> tuple[str, ...]:
        return ("daemon", "exit", str(code))

    def link(self, target: str, path: str) -> tuple[str, ...]:
        return ("ln", target, path)

    def fifo(self, path: str) -> tuple[str, ...]:
        return ("mkfifo", path)

    def show(self, path: str) -> tuple[str, ...]:
        return ("read-file", path)


class ShellPrograms:
    """For every runtime with a POSIX shell, head, cat, sleep and setsid in it."""

    def _sh(self, script: str, *arguments: str) -> tuple[str, ...]:
        return ("/bin/sh", "-c", script, "sh", *arguments)

    def echo(self, text: str) -> tuple[str, ...]:
        return self._sh('printf "%s\\n" "$1"', text)

    def err(self, text: str) -> tuple[str, ...]:
        return self._sh('printf "%s\\n" "$1" >&2', text)

    def cat(self) -> tuple[str, ...]:
        return ("cat",)

    def env(self) -> tuple[str, ...]:
        return ("env",)

    def pwd(self) -> tuple[str, ...]:
        return self._sh("pwd")

    def exit(self, code: int) -> tuple[str, ...]:
        return self._sh('exit "$1"', str(code))

    def print(self, size: int) -> tuple[str, ...]:
        return ("head", "-c", str(size), "/dev/zero")

    def printed(self, size: int) -> bytes:
        return bytes(size)

    def both(self, size: int) -> tuple[str, ...]:
        return self._sh('head -c "$1" /dev/zero & head -c "$1" /dev/zero >&2; wait', str(size))

    def spew(self) -> tuple[str, ...]:
        return ("cat", "/dev/zero")

    def sleep(self) -> tuple[str, ...]:
        return ("sleep", "1000")

    def missing(self) -> tuple[str, ...]:
        return ("/usr/bin/no-such-program",)

    def trap_usr1(self) -> tuple[str, ...]:
        return self._sh("trap 'echo SIGUSR1' USR1; echo ready; while :; do sleep 1000 & wait; done")

    def sizes(self) -> tuple[str, ...]:
        return self._sh("trap 'stty size' WINCH; stty -echo; echo ready; while :; do sleep 0.05; done")

    def size(self, rows: int, cols: int) -> bytes:
        return b"%d %d\r\n" % (rows, cols)

    def close_stdin(self) -> tuple[str, ...]:
        return self._sh("exec 0<&-; exec sleep 1000")

    def daemon(self, code: int) -> tuple[str, ...]:
        return self._sh('setsid sleep 1000 </dev/null >/dev/null 2>&1 & exit "$1"', str(code))

    def holder(self, code: int) -> tuple[str, ...]:
        return self._sh('sleep 1000 & exit "$1"', str(code))

    def link(self, target: str, path: str) -> tuple[str, ...]:
        return ("ln", "-s", target, path)

    def fifo(self, path: str) -> tuple[str, ...]:
        return ("mkfifo", path)

    def show(self, path: str) -> tuple[str, ...]:
        return ("cat", path)


@dataclass(frozen=True)
class Kind:
    """One backend under test.

    `check` calls `tests.require.require`; `open` makes a fresh backend; `left` names what of it still exists, seen
    from outside (processes, cgroups, mounts, descriptors); `processes` counts the commands' processes of a sandbox;
    `lose` ends a sandbox behind the backend's back; `break_create` makes every later create fail. Where one is None
    the rules that need it are skipped with that reason.
    """

    name: str
    open: Callable[[], Awaitable[Backend]]
    left: Callable[[Any], list[str]]
    programs: Programs
    check: Callable[[], None] = lambda: None
    spec: SandboxSpec = SPEC
    env: dict[str, str] = field(default_factory=dict)
    base_env: Mapping[str, str] = field(default_factory=dict)  # what the runtime sets where the command does not
    fixed_env: frozenset[str] = frozenset()  # names that the runtime sets whatever the command says
    processes: Callable[[Any, str], Awaitable[int]] | None = None
    lose: Callable[[Any, str], Awaitable[None]] | None = None
    break_create: Callable[[Any], None] | None = None
    beside: int = 8  # executions that are started at the same moment
    turns: int = 16  # of the loop: create and destroy are cancelled after each number below this

    def command(
        self,
        argv: tuple[str, ...],
        *,
        stdin: bool = False,
        tty: Terminal | None = None,
        env: dict[str, str] | None = None,
        workdir: str = "",
    ) -> Command:
        return Command(
            argv,
            env=self.env if env is None else env,
            workdir=workdir or self.spec.workdir,
            timeout_seconds=60,
            stdin=Stdin.OPEN if stdin or tty is not None else Stdin.NONE,
            tty=tty,
            on_output_limit=OnOutputLimit.DROP_OLDEST,
        )


async def _open_null() -> Backend:
    return NullBackend()


async def _null_processes(backend: NullBackend, sandbox_id: str) -> int:
    return sum(1 for name in backend.alive if name.startswith(f"{sandbox_id}/"))


def _break_null(backend: NullBackend) -> None:
    backend.create_error = LaunchFailed("mount_proc", "EPERM", "step mount_proc failed: EPERM")


_process, _boxlite, MACHINE = ProcessRuntime(), BoxliteRuntime(), MachineRuntime()
KINDS: list[Kind] = [
    Kind(
        "null",
        _open_null,
        left=lambda backend: backend.alive,
        programs=NullPrograms(),
        processes=_null_processes,
        lose=lambda backend, sandbox_id: backend.lose(sandbox_id, "the worker was killed"),
        break_create=_break_null,
    ),
    Kind(
        "process",
        _process.open,
        left=_process.left,
        programs=ShellPrograms(),
        check=_process.check,
        base_env=BASE_ENVIRONMENT,
        processes=_process.processes,
        lose=_process.lose,
        break_create=_process.break_create,
    ),
    Kind(
        "boxlite",
        _boxlite.open,
        left=_boxlite.left,
        programs=ShellPrograms(),
        check=_boxlite.check,
        spec=BOXLITE_SPEC,
        fixed_env=frozenset({MARK, "BOXLITE_EXECUTOR"}),
        base_env={"HOME": "/root"},
        processes=_boxlite.processes,
        lose=_boxlite.lose,
        break_create=_boxlite.break_create,
        turns=6,
    ),
    Kind(
        "machine",
        MACHINE.open,
        left=MACHINE.left,
        programs=ShellPrograms(),
        spec=BOXLITE_SPEC,
        fixed_env=frozenset({MARK, "BOXLITE_EXECUTOR"}),
        base_env={"HOME": "/root"},
        processes=MACHINE.processes,
        lose=MACHINE.lose,
        turns=2,  # a boot takes five seconds
        beside=4,  # QEMU's user network has reset one of eight connections that came at once
    ),
]
