"""What is typed, the client's side. Every command is a few lines that call `app.client` and show the answer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import FAILED, operate
from app.cli import options as o
from app.cli.show import put, put_json, put_table, say

if TYPE_CHECKING:
    from app.client import Client

app = typer.Typer(
    name="bulkhead",
    help="Run code nobody trusts, with its output streamed live.",
    epilog="The service is found by BULKHEAD_CLIENT_URL (http://127.0.0.1:8000) and BULKHEAD_CLIENT_KEY.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
operate.add_to(app)
COMMAND = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


def _with_client(work: Callable[[Client], Awaitable[int]]) -> int:
    from app.cli.connect import connected

    gc.freeze()  # what was imported stays; only what comes from now on is worth looking at
    gc.enable()
    return asyncio.run(connected(work))


def _version(wanted: bool) -> None:
    if wanted:
        from app import __version__

        put(f"bulkhead {__version__}")
        raise typer.Exit


@app.callback()
def bulkhead(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(context_settings=COMMAND)
def run(
    command: o.Command,
    *,
    runtime: o.Runtime = None,
    timeout: o.Timeout = None,
    env: o.Env = None,
    workdir: o.Workdir = None,
    profile: o.Profile = None,
    label: o.Label = None,
    cpus: o.Cpus = None,
    memory_mib: o.Memory = None,
    processes: o.Processes = None,
    disk_mib: o.Disk = None,
    output_bytes: o.OutputBytes = None,
    wall_seconds: o.Wall = None,
    ttl: o.Ttl = None,
    idle: o.Idle = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox behind; its id goes to stderr.")] = False,
    as_json: o.AsJson = False,
) -> int:
    """Run one command in a new sandbox, with our stdin, stdout, stderr and exit status; then destroy the sandbox.

    Status: the command's; 128+n for signal n; 124 timeout; 137 out of memory or killed; 126, 127 not started; 125 us.
    """
    limits = o.Limits(cpus, memory_mib, processes, disk_mib, output_bytes, wall_seconds)
    room = o.Room(runtime, env, workdir, profile, label, limits, ttl, idle)
    execution = _execution(command, timeout)
    body = room.body(timeout)

    async def work(client: Client) -> int:
        from app.cli.session import Order, carry_out

        return await carry_out(client, Order(body, execution, keep, as_json))

    return _with_client(work)


@app.command("exec", cls=o.CommandLine, context_settings=COMMAND)
def execute(
    sandbox: o.Sandbox,
    command: o.Command,
    *,
    timeout: o.Timeout = None,
    env: o.Env = None,
    workdir: o.Workdir = None,
    as_json: o.AsJson = False,
) -> int:
    """Run a command in a sandbox that is there. Options may stand before or after SANDBOX; status as for `run`."""
    execution = _execution(command, timeout) | o.without_none(
        {"env": o.pairs(env, "--env") or None, "workdir": workdir}
    )

    async def work(client: Client) -> int:
        from app.cli.session import Order, carry_out

        return await carry_out(client, Order(sandbox, execution, as_json=as_json))

    return _with_client(work)


def _execution(command: list[str], timeout: float | None) -> dict[str, Any]:
    from app.cli.pipes import wanted

    stdin = "open" if wanted() else "none"
    return o.without_none({"command": o.text_only(command), "stdin": stdin, "timeout_seconds": timeout})


@app.command()
def create(
    *,
    runtime: o.Runtime = None,
    env: o.Env = None,
    workdir: o.Workdir = None,
    profile: o.Profile = None,
    label: o.Label = None,
    cpus: o.Cpus = None,
    memory_mib: o.Memory = None,
    processes: o.Processes = None,
    disk_mib: o.Disk = None,
    output_bytes: o.OutputBytes = None,
    wall_seconds: o.Wall = None,
    ttl: o.Ttl = None,
    idle: o.Idle = None,
    as_json: o.AsJson = False,
) -> int:
    """Create a sandbox and print its id."""
    limits = o.Limits(cpus, memory_mib, processes, disk_mib, output_bytes, wall_seconds)
    body = o.Room(runtime, env, workdir, profile, label, limits, ttl, idle).body()

    async def work(client: Client) -> int:
        sandbox = await client.create_sandbox(body)
        if as_json:
            put_json(sandbox)
        else:
            put(sandbox["id"])
        return 0

    return _with_client(work)


@app.command("ls")
def list_sandboxes(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Destroyed ones too, while they are known.")] = False,
    label: o.Label = None,
    as_json: o.AsJson = False,
) -> int:
    """List sandboxes, oldest first."""
    labels = o.pairs(label, "--label")

    async def work(client: Client) -> int:
        found = [s async for s in client.sandboxes(labels) if everything or s["state"] != "destroyed"]
        if as_json:
            put_json(found)
        else:
            columns = ["ID", "RUNTIME", "STATE", "CREATED", "EXPIRES", "RUNNING", "LABELS"]
            put_table(columns, [_row(sandbox) for sandbox in found])
        return 0

    return _with_client(work)


def _row(sandbox: Mapping[str, Any]) -> list[str]:
    executions = sandbox.get("executions") or {}
    return [
        sandbox["id"],
        sandbox["runtime"],
        sandbox["state"],
        _moment(sandbox["created_at"]),
        _moment(sandbox["expires_at"]),
        f"{executions.get('running', 0)}/{executions.get('total', 0)}",
        " ".join(f"{name}={value}" for name, value in (sandbox.get("labels") or {}).items()),
    ]


def _moment(text: str | None) -> str:
    return (text or "")[:19].removesuffix("Z") + "Z" if text else ""


@app.command()
def logs(
    sandbox: o.Sandbox,
    execution: o.Execution,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the execution ends.")] = False,
) -> int:
    """Print the stored output of an execution: its stdout to ours, its stderr to ours."""

    async def work(client: Client) -> int:
        from app.cli.replay import replay

        await replay(client, sandbox, execution, follow=follow)
        return 0

    return _with_client(work)


@app.command()
def kill(
    sandbox: o.Sandbox,
    execution: o.Execution,
    signal: Annotated[
        str | None, typer.Option("--signal", "-s", metavar="S", help="Send this instead, such as SIGINT.")
    ] = None,
) -> int:
    """Kill everything that an execution started, or send a signal to its process group."""

    async def work(client: Client) -> int:
        if signal is None:
            await client.kill(sandbox, execution)
        else:
            await client.signal(sandbox, execution, signal.upper())
        return 0

    return _with_client(work)


@app.command("rm")
def remove(sandboxes: Annotated[list[str], typer.Argument(metavar="SANDBOX...")]) -> int:
    """Destroy sandboxes. When it returns, no process of them exists."""

    async def work(client: Client) -> int:
        results = await asyncio.gather(*map(client.destroy_sandbox, sandboxes), return_exceptions=True)
        failures = [(name, r) for name, r in zip(sandboxes, results, strict=True) if isinstance(r, BaseException)]
        for name, failure in failures:
            say(f"{name}: {failure}" if len(sandboxes) > 1 else str(failure))
        return FAILED if failures else 0

    return _with_client(work)


@app.command()
def runtimes(as_json: o.AsJson = False) -> int:
    """Show what the service can isolate with."""

    async def work(client: Client) -> int:
        found = await client.runtimes()
        if as_json:
            put_json(found)
        else:
            columns = ["NAME", "ALIASES", "AVAILABLE", "TIER", "VERSION", "CAPABILITIES", "REASON"]
            put_table(columns, [_runtime_row(runtime) for runtime in found])
        return 0

    return _with_client(work)


def _runtime_row(runtime: Mapping[str, Any]) -> list[str]:
    state = "yes" if runtime.get("available") else "no" if runtime.get("enabled", True) else "not enabled"
    return [
        runtime["name"],
        ", ".join(runtime.get("aliases") or ()),
        state,
        runtime.get("tier") or "",
        runtime.get("version") or "",
        ", ".join(runtime.get("capabilities") or ()),
        runtime.get("reason") or "",
    ]
