"""Bulkhead's own commands inside a box, run by its shell. What they say is no proof, as the image may be a stranger's.

Every command of a client carries a mark in its environment, which children inherit. So a second command can find all
that an execution started, while BoxLite itself ends or signals only its first process. A process can overwrite its own
environment and escape. This is why the runtime does not have the capability `kill_tree`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.attach import AttachCut, AttachRefused, Ended
from app.backends.boxlite.client import shown
from app.backends.boxlite.scripts import script
from app.backends.boxlite.server import BoxliteServer, SpawnFailed
from app.core.errors import BackendTimeout, BackendUnavailable, Upstream
from app.core.models import Channel

_PREFIX = "BULKHEAD_"
MARK = f"{_PREFIX}EXECUTION"  # in the environment of a command
WRAPPER_MARK = f"{_PREFIX}WRAPPER"  # in that of what carries the output and stdin of one, and not in the command's
WORKSPACE = "/workspace"
OUTPUT_BYTES = 64 * 1024
MOST_LINKS = 16  # a box has two
_NOT_ALLOWED = 4
_NAMES = frozenset({"kernel", "cpus", "memory_kib", "routes", "inexact"})

MAIN_COMMAND = ["sh", "-c", script("main")]
PROVE, _KILL, _SIGNAL, _ASK_PROXY = script("prove"), script("kill"), script("signal"), script("ask_proxy")


class KillResult(Enum):
    """The result of a kill of all processes with a mark."""

    KILLED = 0
    NOTHING = 6  # there was none
    LEFT = 3  # something is still there, or nobody knows


@dataclass(slots=True)
class CommandResult:
    code: int
    out: bytes = b""
    err: bytes = b""


@dataclass(frozen=True, slots=True)
class BoxMeasurements:
    """What a box is, as measured by the image's own shell."""

    kernel: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    links: Mapping[str, bool] = field(default_factory=dict)  # name: is it up
    routes: int = -1  # to anywhere but itself; -1: could not be read
    inexact: str | None = None  # why output cannot be exact; empty: it can; None: was not asked


def shell_command(script: str, *arguments: str, seconds: float) -> dict[str, object]:
    """A shell command in the form that the server takes."""
    return {
        "command": "sh",
        "args": ["-c", script, "sh", *arguments],
        "working_dir": "/",
        "tty": False,
        "timeout_seconds": seconds,
    }


class BoxCommands:
    def __init__(self, server: BoxliteServer, box_id: str) -> None:
        self._server, self._box_id = server, box_id

    async def prove(self, *, needs_workspace: bool, probe: bool) -> BoxMeasurements:
        """The first command in a box: when it has run, the box works. Makes the workspace. `probe`: asks whether output
        can be exact, which takes some programs more. Raises BackendUnavailable,
        and PermissionError when the image's user may not make a workspace that is needed."""
        said = await self._shell(PROVE, WORKSPACE, "needed" if needs_workspace else "", "probe" if probe else "")
        if said.code == _NOT_ALLOWED:
            raise PermissionError(shown(said.err.decode(errors="replace"))[:200])
        if said.code != 0:
            raise BackendUnavailable(RUNTIME, f"the box cannot run its shell: it ended with {said.code}")
        return facts_of(said.out.decode(errors="replace"))

    async def kill(self, execution_id: str) -> KillResult:
        """Kills all processes with the mark of that execution. What carries its output ends when it has carried
        all."""
        return await self._kill(f"{MARK}={execution_id}")

    async def sweep(self, execution_id: str) -> KillResult:
        """Kills also what carries its output and stdin."""
        return await self._kill(f"{_PREFIX}[A-Z]*={execution_id}")

    async def _kill(self, mark: str) -> KillResult:
        code = (await self._shell(_KILL, mark)).code
        return KillResult(code) if code in {0, 6} else KillResult.LEFT

    async def signal(self, execution_id: str, number: int) -> bool:
        """Signals the group of the execution's first process. Returns False when there is none, or when the shell
        cannot do it."""
        return (await self._shell(_SIGNAL, str(number), f"{MARK}={execution_id}")).code == 0

    async def ask_proxy(self, url: str, host: str, port: str, basic: str) -> CommandResult:
        """Asks a proxy which sandbox it serves by this credential. The answer is the output."""
        return await self._shell(_ASK_PROXY, url, host, port, basic)

    async def run(self, script: str, *arguments: str) -> int:
        """Runs a shell command and returns its status."""
        return (await self._shell(script, *arguments)).code

    async def _shell(self, script: str, *arguments: str) -> CommandResult:
        """Raises a BackendFailure."""
        body = shell_command(script, *arguments, seconds=self._server.timeouts.shell)
        try:
            async with asyncio.timeout(2 * self._server.timeouts.shell):
                execution_id = await self._server.execute(self._box_id, body)
                return await self._listen(execution_id)
        except SpawnFailed as error:
            raise BackendUnavailable(RUNTIME, f"the box has no working shell: {error}", 60) from error
        except AttachRefused as error:
            raise BackendUnavailable(RUNTIME, str(error), 1, Upstream(error.status)) from error
        except AttachCut as error:
            raise BackendUnavailable(RUNTIME, f"the BoxLite server closed the connection: {error}") from error
        except TimeoutError:
            raise BackendTimeout(RUNTIME, "the box does not answer") from None

    async def _listen(self, execution_id: str) -> CommandResult:
        said = CommandResult(-1)
        async with self._server.attach(self._box_id, execution_id) as socket:
            await socket.end_stdin()
            async for frame in socket.frames():
                if isinstance(frame, Ended):
                    said.code = frame.code
                elif frame.channel is Channel.STDOUT:
                    said.out += frame.data[: OUTPUT_BYTES - len(said.out)]
                else:
                    said.err += frame.data[: OUTPUT_BYTES - len(said.err)]
        return said


def facts_of(text: str) -> BoxMeasurements:
    """Parses the facts. They go into the receipt, so they are bounded and have no control characters."""
    links: dict[str, bool] = {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "link":
            link, _, up = value.partition(" ")
            if len(links) < MOST_LINKS:
                links[shown(link)[:32]] = up == "1"
        elif name in _NAMES:
            found[name] = shown(value)[:128]

    def number(name: str, unknown: int) -> int:
        value = found.get(name, "")
        return int(value) if value.isascii() and value.isdigit() else unknown

    return BoxMeasurements(
        found.get("kernel", ""),
        number("cpus", 0),
        number("memory_kib", 0) * 1024,
        links,
        number("routes", -1),
        found.get("inexact"),
    )
