"""The other commands, and what every command says when it cannot do its work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app import __version__
from app.cli.show import short_time
from app.client.errors import reason_of
from tests.unit.cli.fake_service import BASE, EXECUTION, SANDBOX, FakeService, Wire, answer, fake_service, problem
from tests.unit.cli.typed import ROOT, begin, bulkhead, environment

NOWHERE = "http://127.0.0.1:1"
EXECUTIONS = f"{BASE}/executions"
OUTPUT = f"GET {EXECUTIONS}/{EXECUTION}/output"
SANDBOX_ANSWER = {
    "id": SANDBOX,
    "runtime": "process",
    "state": "running",
    "created_at": "2030-01-02T03:04:05.678901Z",
    "expires_at": "2030-01-02T04:04:05.678901Z",
    "executions": {"running": 1, "total": 2},
    "labels": {"team": "red\x1b[1m"},
}


# --- failures of our own


async def test_no_service_is_told_with_the_url_and_the_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    for typed in (["run", "true"], ["ls"], ["logs", "s", "e", "-f"]):
        ended = await bulkhead(url, *typed)
        assert (ended.status, ended.stdout) == (125, b"")
        assert (
            ended.stderr
            == f"bulkhead: no service answers at {url} (Connection refused); start one with: bulkhead serve "
            "(or set BULKHEAD_CLIENT_URL to the address of another)\n"
        )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the server does not speak TLS: try http://"),
        (b"", "the server closed the connection at the start of TLS"),
    ],
    ids=["HTTP", "nothing"],
)
async def test_service_without_tls_is_told_where_https_was_asked_for(answer: bytes, said: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ended = await bulkhead(url, "ls")
    assert (ended.status, f"no service answers at {url} ({said});" in ended.stderr) == (125, True), ended.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ssl.SSLCertVerificationError(1, ""), "its certificate is refused: self-signed certificate"),
        (ssl.SSLError(1, ""), "TLS failed: sslv3 alert handshake failure"),
    ],
    ids=["certificate", "alert"],
)
def test_failure_of_tls_is_told_in_its_own_words(error: ssl.SSLError, said: str) -> None:
    vars(error)["verify_message"] = "self-signed certificate"  # as OpenSSL sets them
    error.reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"
    assert reason_of(error) == said


async def test_problem_is_one_line_with_every_wrong_field() -> None:
    async with fake_service() as service:
        service.answers["POST /sandboxes"] = problem(
            422,
            "invalid_request",
            "The request is invalid",
            detail="/env/A: x; /workdir: y",
            errors=[{"pointer": "/env/A", "detail": "x"}, {"pointer": "/workdir", "detail": "y\n"}],
        )
        ended = await bulkhead(service.url, "create")
    assert (ended.status, ended.stderr) == (125, "bulkhead: The request is invalid: --env A: x; --workdir: y \n")


async def test_key_is_sent_as_a_header_and_never_shown() -> None:
    key = "bh_secret_secret_secret"
    async with fake_service() as service:
        service.answers["GET /sandboxes"] = problem(401, "unauthenticated", "Unauthenticated", detail="wrong key")
        ended = await bulkhead(service.url, "ls", env={"BULKHEAD_CLIENT_KEY": key, "BULKHEAD_CLIENT_DEBUG": "1"})
        without = await bulkhead(service.url, "ls")
    assert [request.headers.get("authorization") for request in service.requests] == [f"Bearer {key}", None]
    assert without.stderr == "bulkhead: Unauthenticated: wrong key: the key is read from BULKHEAD_CLIENT_KEY\n"
    assert "Traceback" in ended.stderr
    assert key not in ended.stderr


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (
            {"BULKHEAD_CLIENT_URL": "localhost:8000"},
            "the service's URL must begin with http:// or https:// and name a host",
        ),
        (
            {"BULKHEAD_CLIENT_URL": "http://:pass@localhost"},
            "the service's URL must not hold a key or password: use BULKHEAD_CLIENT_KEY",
        ),
        ({"BULKHEAD_CLIENT_KEY": "two\nlines"}, "the key has characters that a header cannot have (a line break?)"),
    ],
)
async def test_client_settings_that_cannot_work_are_refused(env: dict[str, str], said: str) -> None:
    ended = await bulkhead(NOWHERE, "ls", env=env)
    assert (ended.status, ended.stderr) == (125, f"bulkhead: {said}\n")


async def test_something_else_than_a_bulkhead_service_is_noticed() -> None:
    async with fake_service() as service:
        service.answers["GET /runtimes"] = (200, {"Content-Type": "text/html"}, b"<html>hello</html>")
        strange = await bulkhead(service.url, "runtimes")
        service.answers["GET /runtimes"] = (502, {"Content-Type": "text/html"}, b"<html>bad\ngateway</html>")
        proxy = await bulkhead(service.url, "runtimes")
        service.answers["GET /runtimes"] = (302, {"Location": "http://127.0.0.1:1/"}, b"")
        redirect = await bulkhead(service.url, "runtimes")
    assert strange.stderr == f"bulkhead: the answer of {service.url} is not that of a Bulkhead service\n"
    assert proxy.stderr == "bulkhead: the answer was 502 Said: <html>bad gateway</html>\n"
    assert redirect.stderr == "bulkhead: the answer was 302 Said\n"
    assert {strange.status, proxy.status, redirect.status} == {125}


async def test_command_without_its_sandbox_is_told_the_whole_form() -> None:
    ended = await bulkhead(NOWHERE, "exec", "--", "true")
    assert ended.stderr == "bulkhead: there is no command to run; write bulkhead exec SANDBOX -- COMMAND\n"
    assert ended.status == 125


@pytest.mark.parametrize(
    ("typed", "status"),
    [
        (["run", "--nope", "true"], 125),
        (["run"], 125),
        (["run", "--env", "NOVALUE", "true"], 125),
        (["exec", "sbx"], 125),
        (["ls", "--nope"], 2),
        (["nope"], 2),
    ],
)
async def test_usage_error_cannot_be_taken_for_the_programs_status(typed: list[str], status: int) -> None:
    ended = await bulkhead(NOWHERE, *typed)
    assert (ended.status, ended.stdout) == (status, b"")
    assert "usage: bulkhead" in ended.stderr or ended.stderr.startswith("bulkhead: there is no command to run; write ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["run", "--memory", "5", "true"], "--memory; did you mean --memory-mib?"),
        (["exec", "sbx", "--time=5", "true"], "--time=5; did you mean --timeout?"),
        (["ls", "--lable", "a=b"], "--lable; did you mean --label?"),
        (["ls", "--xyzzy"], "--xyzzy"),
        (["run", "--file", "sol.py", "true"], "--file"),
        (["exec", "--cpus", "1", "sbx", "true"], "--cpus; give it to `bulkhead create`"),
        (["exec", "sbx", "--disk-mib=1", "true"], "--disk-mib=1; give it to `bulkhead create`"),
        (["create", "--timeout", "1"], "--timeout 1; give it to `bulkhead exec`"),
        (["ls", "a", "b"], "b"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_option_that_is_not_known_names_the_nearest(typed: list[str], said: str) -> None:
    assert (await bulkhead(NOWHERE, *typed)).stderr.endswith(f"\nbulkhead: unknown argument: {said}\n")


async def test_pair_without_a_value_is_refused_in_the_words_of_the_help() -> None:
    ended = await bulkhead(NOWHERE, "create", "--label", "foo")
    assert ended.stderr.endswith("bulkhead: argument --label/-l: write a label as KEY=VALUE\n")
    assert "--label KEY=VALUE" in ended.stderr


async def test_argument_that_is_no_text_is_refused() -> None:
    ended = await bulkhead(NOWHERE, "run", "--", "echo", os.fsdecode(b"\xff"))
    assert ended.status == 125
    assert "argument 2 of the command is not valid UTF-8" in ended.stderr


# --- start-up


async def test_version_and_help() -> None:
    version = await bulkhead(NOWHERE, "--version")
    assert (version.status, version.stdout.decode()) == (0, f"bulkhead {__version__}\n")
    for typed in (["-h"], ["run", "-h"], ["exec", "--help"], ["key", "new", "-h"]):
        ended = await bulkhead(NOWHERE, *typed)
        assert (ended.status, ended.stderr) == (0, "")
        assert ended.stdout.startswith(b"usage: bulkhead")


HEAVY = {"httpx", "websockets", "rich", "pydantic", "pydantic_settings", "pyroute2", "fastapi"}


@pytest.mark.parametrize(
    ("typed", "status"),
    [
        (["--help"], 0),
        # Health checks of containers run every few seconds.
        (["launcher", "--check", "--socket", "/nonexistent"], 1),
        (["egress", "--check", "--socket", "/nonexistent"], 1),
    ],
    ids=["help", "launcher", "egress"],
)
def test_what_must_start_quickly_imports_nothing_heavy(typed: list[str], status: int) -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "app.cli", *typed],
        env=environment(NOWHERE),
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines()}
    assert (found.returncode, "argparse" in imported) == (status, True), found.stderr
    assert not imported & HEAVY


# --- sandboxes


async def test_create_prints_the_id() -> None:
    async with fake_service() as service:
        ended = await bulkhead(service.url, "create", "--ttl", "60", "--idle", "5", "--label", "a=b")
        as_json = await bulkhead(service.url, "create", "--json")
    assert (ended.status, ended.stdout) == (0, f"{SANDBOX}\n".encode())
    assert json.loads(as_json.stdout)["id"] == SANDBOX
    assert service.requests[0].body == {"ttl_seconds": 60, "idle_seconds": 5, "labels": {"a": "b"}}


async def test_ls_shows_every_page_and_hides_what_is_destroyed() -> None:
    class Paged(FakeService):
        async def _answer(self, request):  # type: ignore[no-untyped-def]  # the fake's own
            if request.query.get("cursor") == "next":
                return answer(
                    200,
                    {
                        "items": [SANDBOX_ANSWER | {"id": "sbx_2", "state": "destroyed"}, SANDBOX_ANSWER],
                        "next_cursor": None,
                    },
                )
            return answer(200, {"items": [SANDBOX_ANSWER | {"id": "sbx_0"}], "next_cursor": "next"})

    async with fake_service(kind=Paged) as service:
        table = await bulkhead(service.url, "ls", "--label", "team=red")
        as_json = await bulkhead(service.url, "ls", "--json", "--all")
    assert service.requests[0].query["label"] == "team:red"
    lines = table.stdout.decode().splitlines()
    assert lines[0].split() == ["ID", "RUNTIME", "STATE", "CREATED", "EXPIRES", "RUNNING", "LABELS"]
    assert lines[2].split() == [
        SANDBOX,
        "process",
        "running",
        "2030-01-02T03:04:05Z",
        "2030-01-02T04:04:05Z",
        "1/2",
        "team=red\\x1b[1m",
    ]  # fmt: skip - a row
    assert [len(lines), [s["id"] for s in json.loads(as_json.stdout)]] == [3, ["sbx_0", "sbx_2", SANDBOX]]


async def test_empty_ls_is_a_heading() -> None:
    async with fake_service() as service:
        service.answers["GET /sandboxes"] = answer(200, {"items": [], "next_cursor": None})
        ended = await bulkhead(service.url, "ls")
    assert (ended.status, ended.stdout.count(b"\n")) == (0, 1)


def test_table_on_a_terminal_cannot_be_painted_by_a_label() -> None:
    master, slave = pty.openpty()
    code = "from app.cli.show import put_table; put_table(['A'], [['[red]x[/red] \\x1b[2J']])"
    subprocess.run(
        [sys.executable, "-c", code], stdout=slave, cwd=ROOT, env=environment(NOWHERE, TERM="xterm"), check=True
    )
    os.close(slave)
    shown = os.read(master, 4096)
    os.close(master)
    assert b"[red]x[/red] \\x1b[2J" in shown
    assert b"\x1b[2J" not in shown


async def shown(url: str, *typed: str, cols: int = 80) -> list[str]:
    """What a terminal of that width gets, line by line, without colours."""
    master, slave = pty.openpty()
    process = await begin(url, *typed, stdout=slave, env={"TERM": "xterm", "COLUMNS": str(cols)})
    os.close(slave)
    text = re.sub(r"\x1b\[[0-9;]*m", "", (await asyncio.to_thread(read_to_hangup, master)).decode())
    assert await process.wait() == 0
    return [line.rstrip() for line in text.splitlines()]


def read_to_hangup(master: int) -> bytes:
    data = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while piece := os.read(master, 65536):
            data += piece
    os.close(master)
    return data


async def test_ls_on_a_terminal_of_80_columns_keeps_ids_and_labels_whole() -> None:
    now = datetime.now(UTC)
    times = {
        "created_at": (now - timedelta(minutes=3, seconds=30)).isoformat(),
        "expires_at": (now + timedelta(minutes=57, seconds=30)).isoformat(),
    }
    sandbox = (
        SANDBOX_ANSWER | times | {"id": "sbx_" + "0" * 26, "state": "destroyed", "labels": {"project": "a-long-name"}}
    )
    async with fake_service() as service:
        service.answers["GET /sandboxes"] = answer(200, {"items": [sandbox], "next_cursor": None})
        lines = await shown(service.url, "ls", "--all")
        wide = await shown(service.url, "ls", "--all", cols=120)
    assert [line for line in lines if len(line) > 80] == []
    assert lines[0].split() == ["ID", "RUNTIME", "STATE", "CREATED", "EXPIRES", "RUNNING"]
    row = [sandbox["id"], "process", "destroyed", "3m", "ago", "-", "1/2"]
    assert lines[1].split() == row
    assert lines[2:] == ["  LABELS project=a-long-name"]
    assert wide[1].split() == [*row, "project=a-long-name"]


async def test_ls_on_a_terminal_that_is_too_narrow_cuts_nothing_off() -> None:
    sandbox = SANDBOX_ANSWER | {"id": "x" * 63, "labels": {"team": "red"}}
    async with fake_service() as service:
        service.answers["GET /sandboxes"] = answer(200, {"items": [sandbox], "next_cursor": None})
        lines = await shown(service.url, "ls")
    assert (lines[1].split()[0], lines[1].split()[-1], len(lines[1]) > 80) == ("x" * 63, "1/2", True)
    assert lines[2:] == ["  LABELS team=red"]


async def test_runtimes_on_a_terminal_of_80_columns_have_reason_and_capabilities_below() -> None:
    capabilities = ["exact_output", "filesystem_policy", "limit_processes", "syscall_profiles", "usage"]
    row = {"name": "process", "aliases": ["kernel", "linux"], "available": True, "version": "0.1.0", "tier": "kernel"}
    row |= {"capabilities": capabilities, "reason": "the launcher does not answer"}
    async with fake_service() as service:
        service.answers["GET /runtimes"] = answer(200, {"items": [row]})
        lines = await shown(service.url, "runtimes")
    assert [line for line in lines if len(line) > 80] == []
    assert lines[0].split() == ["NAME", "ALIASES", "AVAILABLE", "TIER", "VERSION"]
    assert lines[2] == "  REASON       the launcher does not answer"
    assert lines[3].startswith("  CAPABILITIES exact_output, filesystem_policy, ")
    assert [name for line in lines[1:] for name in re.findall(r"\w+_\w+|usage", line)] == capabilities


def test_table_on_a_terminal_gives_room_to_the_longest_words_first() -> None:
    name = "BULKHEAD_BOXLITE__API_KEY"
    master, slave = pty.openpty()
    code = f"from app.cli.show import put_table; put_table(['A', 'B'], [['x ' * 60, '{name} is a key']], ['A', 'B'])"
    env = environment(NOWHERE, TERM="xterm", COLUMNS="40")
    subprocess.run([sys.executable, "-c", code], stdout=slave, cwd=ROOT, env=env, check=True)
    os.close(slave)
    assert name in read_to_hangup(master).decode()


def test_times_on_a_terminal_have_one_unit() -> None:
    now = datetime(2030, 1, 2, tzinfo=UTC)
    for seconds, said in ((-59, "59s ago"), (0, "0s ago"), (61, "in 1m"), (7200, "in 2h"), (-200_000, "2d ago")):
        assert short_time((now + timedelta(seconds=seconds)).isoformat(), now) == said


async def test_rm_destroys_all_and_names_those_it_could_not() -> None:
    async with fake_service() as service:
        good = await bulkhead(service.url, "rm", SANDBOX)
        mixed = await bulkhead(service.url, "rm", "gone", SANDBOX, "..")
    assert (good.status, good.stderr) == (0, "")
    assert mixed.status == 125
    assert mixed.stderr == "bulkhead: gone: not found: there is nothing at this path\nbulkhead: ..: '..' is not an id\n"
    assert service.asked().count(f"DELETE {BASE}") == 2


# --- executions


async def test_kill_without_a_signal_deletes_and_with_one_sends_it() -> None:
    async with fake_service() as service:
        deleted = await bulkhead(service.url, "kill", SANDBOX, EXECUTION)
        sent = await bulkhead(service.url, "kill", SANDBOX, EXECUTION, "--signal", "sigusr1")
    assert (deleted.status, sent.status) == (0, 0)
    assert service.asked() == [f"DELETE {EXECUTIONS}/{EXECUTION}", f"POST {EXECUTIONS}/{EXECUTION}/signal"]
    assert service.signals.get_nowait() == "SIGUSR1"


async def test_logs_prints_what_is_stored_on_its_own_channels() -> None:
    stored = {"stdout": b"0123456789", "stderr": b"warn\n"}

    class Stored(FakeService):
        async def _answer(self, request):  # type: ignore[no-untyped-def]  # the fake's own
            data, asked = stored[request.query["channel"]], int(request.query["offset"])
            begin = max(asked, 4) if request.query["channel"] == "stdout" else asked
            body = data[begin : begin + 3]
            headers = {"Output-Offset": begin, "Output-Next-Offset": begin + len(body), "Output-Total": len(data)}
            return 200, {name: str(value) for name, value in headers.items()}, body

    async with fake_service(kind=Stored) as service:
        ended = await bulkhead(service.url, "logs", SANDBOX, EXECUTION)
    assert (ended.status, ended.stdout) == (0, b"456789")
    assert ended.stderr == "bulkhead: stdout: bytes 0 to 3 are missing: they were dropped before they were read\nwarn\n"


async def test_logs_follow_goes_on_to_the_end_and_ends_with_its_status() -> None:
    async def program(wire: Wire) -> None:
        assert wire.request.query["stdin"] == "false"
        await wire.start()
        await wire.output(b"a")
        await wire.output(b"b", 2)
        await wire.exit(code=3)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "logs", "-f", SANDBOX, EXECUTION)
    assert (ended.status, ended.stdout, ended.stderr) == (3, b"a", "b")
    assert service.asked() == [f"GET {EXECUTIONS}/{EXECUTION}/stream"]


async def test_logs_follow_says_how_it_was_ended() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.exit(reason="oom", code=None, exit_code=-9)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "logs", "-f", SANDBOX, EXECUTION)
    assert (ended.status, ended.stderr) == (137, "bulkhead: oom\n")


@pytest.mark.parametrize("typed", ["abc", "nan", "inf"])
async def test_seconds_are_a_number(typed: str) -> None:
    ended = await bulkhead(NOWHERE, "run", "--timeout", typed, "true")
    assert ended.status == 125
    assert ended.stderr.endswith("bulkhead: argument --timeout: must be a number of seconds\n")


async def test_logs_into_a_closed_pipe_end_quietly() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"a")

    read_end, write_end = os.pipe()
    os.close(read_end)
    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "logs", "-f", SANDBOX, EXECUTION, stdout=write_end)
    os.close(write_end)
    assert (ended.status, ended.stderr) == (141, "")


# --- what needs no service


async def test_runtimes_tells_the_reason_of_one_that_is_not_there() -> None:
    row = {
        "name": "process",
        "aliases": ["linux"],
        "enabled": True,
        "available": False,
        "reason": "no launcher",
        "version": "0.1",
        "tier": "kernel",
        "capabilities": ["stdin", "usage"],
    }  # fmt: skip - one record
    async with fake_service() as service:
        service.answers["GET /runtimes"] = answer(200, {"items": [row]})
        table = await bulkhead(service.url, "runtimes")
        as_json = await bulkhead(service.url, "runtimes", "--json")
    assert table.stdout.decode().splitlines()[1].split() == [
        "process",
        "linux",
        "no",
        "kernel",
        "0.1",
        "no",
        "launcher",
        "stdin,",
        "usage",
    ]  # fmt: skip - a row
    assert json.loads(as_json.stdout) == [row]


async def test_new_key_is_printed_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    ended = await bulkhead(NOWHERE, "key", "new", "laptop", "--data", str(tmp_path / "state"))
    key = ended.stdout.decode().strip()
    assert (ended.status, ended.stderr) == (0, "bulkhead: restart a running service: it reads keys when it starts\n")
    assert len(key) > 40
    kept = "".join(path.read_text() for path in (tmp_path / "state").iterdir())
    assert "laptop" in kept
    assert key not in kept


# --- the page about it


async def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    commands = [
        "serve",
        "launcher",
        "egress",
        "key new",
        "probe",
        "run",
        "create",
        "ls",
        "exec",
        "show",
        "usage",
        "network",
        "attach",
        "logs",
        "kill",
        "rm",
        "runtimes",
    ]
    listed = (await bulkhead(NOWHERE, "-h")).stdout.decode()
    for command in commands:
        assert f"`bulkhead {command}" in page
        assert f"    {command.split()[0]} " in listed
    names = {line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "}
    assert names - {"COMMAND"} == {command.split()[0] for command in commands}
    for name in ("BULKHEAD_CLIENT_URL", "BULKHEAD_CLIENT_KEY", "BULKHEAD_CLIENT_DEBUG", "OPENSHELL_RUNTIME"):
        assert f"`{name}`" in page


async def test_ls_of_a_sandbox_shows_how_its_executions_ended() -> None:
    began = "2030-01-02T03:04:05.123Z"
    items = [
        {
            "id": "exe_1",
            "state": "ended",
            "started_at": began,
            "command": ["sh", "-c", "exit 3"],
            "exit": {"reason": "exited", "code": 3},
        },
        {"id": "exe_2", "state": "running", "started_at": began, "command": ["cat"]},
    ]  # fmt: skip - two items
    async with fake_service() as service:
        service.answers[f"GET /sandboxes/{SANDBOX}/executions"] = answer(200, {"items": items, "next_cursor": None})
        table = await bulkhead(service.url, "ls", SANDBOX)
    lines = [line.split() for line in table.stdout.decode().splitlines()]
    assert lines[1] == ["exe_1", "ended", "2030-01-02T03:04:05Z", "exited", "3", "sh", "-c", "'exit", "3'"]
    assert lines[2] == ["exe_2", "running", "2030-01-02T03:04:05Z", "cat"]
