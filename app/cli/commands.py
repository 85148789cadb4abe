"""The client's commands. Each is a few lines that call `app.client` and show the answer."""

from __future__ import annotations

import asyncio
import gc
import shlex
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from app.cli import FAILED, UsageError, terminal
from app.cli.bodies import execution_body, rules_body, sandbox_body
from app.cli.show import put, put_json, put_table, say, short_time, size

if TYPE_CHECKING:
    from app.client import Client


STDIN_SECONDS = 1.0  # a command that still runs then may be waiting for its input


async def _with_word_of_stdin(typed: Namespace, work: Awaitable[int]) -> int:
    if not terminal.there() or typed.interactive or typed.tty:
        return await work
    word = "stdin is not connected (-i connects it, -it adds a terminal)"
    hint = asyncio.get_running_loop().call_later(STDIN_SECONDS, say, word)
    try:
        return await work
    finally:
        hint.cancel()


def _with_client(work: Callable[[Client], Awaitable[int]]) -> int:
    from app.cli.connect import connected

    gc.freeze()  # what was imported stays; only what comes from now on is worth looking at
    gc.enable()
    return asyncio.run(connected(work))


def run(typed: Namespace) -> int:
    sandbox, execution = sandbox_body(typed), execution_body(typed, in_own_sandbox=True)

    async def work(client: Client) -> int:
        from app.cli.session import CommandRequest, carry_out

        order = CommandRequest(sandbox, execution, typed.keep, typed.json, typed.collect or (), typed.into)
        return await _with_word_of_stdin(typed, carry_out(client, order))

    return _with_client(work)


def execute(typed: Namespace) -> int:
    execution = execution_body(typed, in_own_sandbox=False)

    async def work(client: Client) -> int:
        from app.cli.session import CommandRequest, carry_out

        order = CommandRequest(typed.sandbox, execution, as_json=typed.json)
        return await _with_word_of_stdin(typed, carry_out(client, order))

    return _with_client(work)


def attach(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        from app.cli.session import attach

        return await attach(client, typed.sandbox, typed.execution, stdin=not typed.no_stdin, take=typed.take)

    return _with_client(work)


def create(typed: Namespace) -> int:
    body = sandbox_body(typed)

    async def work(client: Client) -> int:
        from app.cli.interrupts import Interrupts, Stopped
        from app.cli.sandbox import create

        with Interrupts() as interrupts:
            try:
                sandbox = await create(client, interrupts, body)
            except Stopped as stopped:
                return stopped.status
        if typed.json:
            put_json(sandbox)
        else:
            put(sandbox["id"])
        return 0

    return _with_client(work)


def list_sandboxes(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        if typed.sandbox:
            return await _list_executions(client, typed)
        found = [s async for s in client.sandboxes(dict(typed.label or ())) if typed.all or s["state"] != "destroyed"]
        if typed.json:
            put_json(found)
        else:
            columns = ["ID", "RUNTIME", "STATE", "CREATED", "EXPIRES", "RUNNING", "LABELS"]
            put_table(columns, [_sandbox_row(sandbox) for sandbox in found], wrapped=["LABELS"])
        return 0

    return _with_client(work)


async def _list_executions(client: Client, typed: Namespace) -> int:
    found = [execution async for execution in client.executions(typed.sandbox)]
    if typed.json:
        put_json(found)
    else:
        columns = ["ID", "STATE", "STARTED", "ENDING", "COMMAND"]
        put_table(columns, [_execution_row(e) for e in found], wrapped=["COMMAND"])
    return 0


def _execution_row(execution: Mapping[str, Any]) -> list[str]:
    ending = execution.get("exit") or {}
    how = ending.get("signal") or ending.get("code")
    return [
        execution["id"],
        execution["state"],
        short_time(execution["started_at"]),
        "" if not ending else ending["reason"] if how is None else f"{ending['reason']} {how}",
        shlex.join(execution["command"])[:100],
    ]


def _sandbox_row(sandbox: Mapping[str, Any]) -> list[str]:
    executions = sandbox.get("executions") or {}
    return [
        sandbox["id"],
        sandbox["runtime"],
        sandbox["state"],
        short_time(sandbox["created_at"]),
        short_time(sandbox["expires_at"]) if sandbox["state"] != "destroyed" else "-",
        f"{executions.get('running', 0)}/{executions.get('total', 0)}",
        " ".join(f"{name}={value}" for name, value in (sandbox.get("labels") or {}).items()),
    ]


def show(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        from app.cli.facts import facts_of

        found = await client.sandbox(typed.sandbox)
        if typed.json:
            put_json(found)
        else:
            put_table(["FACT", "VALUE"], facts_of(found), wrapped=["VALUE"])
        return 0

    return _with_client(work)


def usage(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        found = await client.usage(typed.sandbox, typed.execution)
        if typed.json:
            put_json(found)
        else:
            put("\n".join(f"{name:<15}{figure}" for name, figure in _figures(found)))
        return 0

    return _with_client(work)


def _figures(usage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and figures for people. `-`: nobody knows."""

    def figure(name: str, show: Callable[[Any], str] = str) -> str:
        value = usage.get(name)
        return "-" if value is None else show(value)

    peak = figure("memory_peak_bytes", size)
    return [
        ("memory", f"{figure('memory_bytes', size)}, peak {peak}"),
        ("processor time", figure("cpu_seconds", lambda seconds: f"{seconds:.2f} s")),
        ("processes", figure("processes")),
        ("disk", figure("disk_bytes", size)),
        ("open files", figure("open_files")),
    ]


def network(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        from app.cli.network import change, follow, show

        verdict = "refused" if typed.refused else None
        if (body := rules_body(typed)) is not None:
            if typed.follow or typed.refused:
                raise UsageError("rules are set without --follow and --refused")
            await change(client, typed.sandbox, body, as_json=typed.json)
        else:
            await (follow if typed.follow else show)(client, typed.sandbox, verdict, as_json=typed.json)
        return 0

    return _with_client(work)


def logs(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        from app.cli.replay import replay

        return await replay(client, typed.sandbox, typed.execution, follow=typed.follow)

    return _with_client(work)


def kill(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        if typed.signal is None:
            await client.kill(typed.sandbox, typed.execution)
        else:
            await client.signal(typed.sandbox, typed.execution, typed.signal.upper())
        return 0

    return _with_client(work)


def remove(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        ids: list[str] = typed.sandboxes
        results = await asyncio.gather(*map(client.destroy_sandbox, ids), return_exceptions=True)
        failures = [(name, r) for name, r in zip(ids, results, strict=True) if isinstance(r, BaseException)]
        for name, failure in failures:
            say(f"{name}: {failure}" if len(ids) > 1 else str(failure))
        return FAILED if failures else 0

    return _with_client(work)


def runtimes(typed: Namespace) -> int:
    async def work(client: Client) -> int:
        found = await client.runtimes()
        if typed.json:
            put_json(found)
        else:
            columns = ["NAME", "ALIASES", "AVAILABLE", "TIER", "VERSION", "REASON", "CAPABILITIES"]
            put_table(columns, [_runtime_row(runtime) for runtime in found], wrapped=["REASON", "CAPABILITIES"])
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
        runtime.get("reason") or "",
        ", ".join(runtime.get("capabilities") or ()),
    ]
