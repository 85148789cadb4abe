"""The options that several commands share, and the request bodies that they become."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

TTL_SECONDS = 3600.0  # the service's default, and how long it keeps a sandbox that nobody deletes
SLACK_SECONDS = 60.0  # a sandbox must outlive its command: creating, starting and reading the rest take time

Runtime = Annotated[
    str | None,
    typer.Option("--runtime", metavar="R", help="Isolation to use [BULKHEAD_RUNTIME, then OPENSHELL_RUNTIME]."),
]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="A variable; repeatable.")]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Where the command starts.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="S", help="Kill it after S seconds (status 124).")]
Profile = Annotated[str | None, typer.Option("--profile", metavar="P", help="The operator's policy profile.")]
Label = Annotated[list[str] | None, typer.Option("--label", "-l", metavar="K=V", help="A label; repeatable.")]
Cpus = Annotated[float | None, typer.Option("--cpus", metavar="N", help="Cores.")]
Memory = Annotated[int | None, typer.Option("--memory-mib", metavar="MIB", help="Memory.")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="Processes and threads.")]
Disk = Annotated[int | None, typer.Option("--disk-mib", metavar="MIB", help="Files in /workspace and /tmp.")]
OutputBytes = Annotated[int | None, typer.Option("--output-bytes", metavar="N", help="Output kept per channel.")]
Wall = Annotated[float | None, typer.Option("--wall-seconds", metavar="S", help="The longest any command may run.")]
Ttl = Annotated[float | None, typer.Option("--ttl", metavar="S", help="Destroy the sandbox after S seconds.")]
Idle = Annotated[float | None, typer.Option("--idle", metavar="S", help="Destroy it after S seconds without use.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sandbox = Annotated[str, typer.Argument(metavar="SANDBOX")]
Execution = Annotated[str, typer.Argument(metavar="EXECUTION")]
Command = Annotated[list[str], typer.Argument(metavar="CMD", help="The program and its arguments; no shell.")]


class CommandLine(typer.core.TyperCommand):
    """`exec [OPTIONS] SANDBOX [OPTIONS] [--] CMD...`: options end where CMD begins, so that its own are its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not {"-h", "--help"} & set(args[:1]):
            ours, rest = self._split(ctx, args)
            if rest:
                more, command = self._split(ctx, rest[1:])
                args = [*ours, *more, "--", rest[0], *command]
        return super().parse_args(ctx, args)

    def _split(self, ctx: Any, args: list[str]) -> tuple[list[str], list[str]]:
        options_only = typer.core.TyperCommand(
            self.name, params=[p for p in self.params if isinstance(p, typer.core.TyperOption)]
        )
        _, rest, _ = options_only.make_parser(ctx).parse_args(list(args))
        options = args[: len(args) - len(rest)]
        return (options[:-1] if options[-1:] == ["--"] else options), list(rest)


def pairs(items: list[str] | None, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def text_only(items: list[str]) -> list[str]:
    """The API speaks Unicode: an argument that is no text cannot be passed on as it is."""
    for number, item in enumerate(items, 1):
        if not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise typer.BadParameter(f"argument {number} of the command is not valid UTF-8") from error
    return items


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Limits:
    """None leaves the number to the service."""

    cpus: float | None
    memory_mib: int | None
    processes: int | None
    disk_mib: int | None
    output_bytes: int | None
    wall_seconds: float | None


@dataclass(frozen=True, slots=True)
class Room:
    """What `create` and `run` say about a sandbox."""

    runtime: str | None
    env: list[str] | None
    workdir: str | None
    profile: str | None
    label: list[str] | None
    limits: Limits
    ttl: float | None
    idle: float | None

    def body(self, timeout: float | None = None) -> dict[str, Any]:
        """The body of `POST /sandboxes`: only what was said, the rest is the service's to choose."""
        limits = without_none(asdict(self.limits))
        needed = max(timeout or 0.0, self.limits.wall_seconds or 0.0) + SLACK_SECONDS
        runtime = self.runtime or os.environ.get("BULKHEAD_RUNTIME") or os.environ.get("OPENSHELL_RUNTIME")
        return without_none(
            {
                "runtime": runtime or None,
                "env": pairs(self.env, "--env") or None,
                "workdir": self.workdir,
                "policy": {"profile": self.profile} if self.profile is not None else None,
                "labels": pairs(self.label, "--label") or None,
                "limits": limits or None,
                "ttl_seconds": self.ttl if self.ttl is not None or needed <= TTL_SECONDS else needed,
                "idle_seconds": self.idle,
            }
        )
