"""`bulkhead run` against a service of canned answers: exit statuses, channels, stdin."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os

import pytest

from tests.unit.cli.fake_service import BASE, EXECUTION, SANDBOX, FakeService, Program, Wire, fake_service, problem
from tests.unit.cli.typed import begin, bulkhead

EXECUTIONS = f"{BASE}/executions"
STREAM = f"{EXECUTIONS}/{EXECUTION}/stream"
WHOLE_LIFE = ["POST /sandboxes", f"POST {EXECUTIONS}", f"GET {STREAM}", f"DELETE {BASE}"]


def ending(**exit_: object) -> Program:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.exit(**exit_)  # type: ignore[arg-type]  # as the caller says

    return program


def prints_and_stays(output: bytes) -> Program:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(output)
        while await wire.read() is not None:
            pass

    return program


async def test_output_goes_to_its_own_channel_byte_for_byte() -> None:
    out, err = bytes(range(256)) * 300, b"\xff\x00warning\n"

    async def program(wire: Wire) -> None:
        await wire.start()
        for begin_ in range(0, len(out), 60_000):
            await wire.output(out[begin_ : begin_ + 60_000])
        await wire.output(err, 2)
        await wire.exit()

    async with fake_service(program) as service:
        process = await begin(service.url, "run", "--", "cmd")
        both = await process.communicate()
    assert (process.returncode, both) == (0, (out, err))
    assert service.asked() == WHOLE_LIFE


async def test_output_arrives_while_the_program_runs() -> None:
    arrived = asyncio.Event()

    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"no line end")
        await arrived.wait()
        await wire.exit()

    async with fake_service(program) as service:
        process = await begin(service.url, "run", "cmd")
        assert process.stdout is not None
        assert await process.stdout.readexactly(11) == b"no line end"
        arrived.set()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("exit_", "status", "said"),
    [
        ({"code": 0}, 0, ""),
        ({"code": 7}, 7, ""),
        ({"code": 255}, 255, ""),
        ({"reason": "signaled", "code": None, "exit_code": -11, "signal": "SIGSEGV"}, 139, ""),
        ({"reason": "signaled", "code": None, "exit_code": -2, "signal": "SIGINT"}, 130, ""),
        (
            {"reason": "timeout", "code": None, "exit_code": -9, "detail": "still running after 2 s"},
            124,
            "bulkhead: timeout: still running after 2 s\n",
        ),
        (
            {"reason": "oom", "code": None, "exit_code": -9, "detail": "the memory limit was reached"},
            137,
            "bulkhead: oom: the memory limit was reached\n",
        ),
        (
            {"reason": "killed", "code": None, "exit_code": -9, "detail": "the execution was deleted"},
            137,
            "bulkhead: killed: the execution was deleted\n",
        ),
        (
            {"reason": "resource_limit", "code": None, "exit_code": -9, "detail": "it held too many file locks"},
            137,
            "bulkhead: resource_limit: it held too many file locks\n",
        ),
        ({"reason": "output_limit", "code": None, "exit_code": -9}, 137, "bulkhead: output_limit\n"),
        (
            {"reason": "start_failed", "code": None, "exit_code": 127, "detail": "exec nope: ENOENT"},
            127,
            "bulkhead: start_failed: exec nope: ENOENT\n",
        ),
        (
            {"reason": "start_failed", "code": None, "exit_code": 126, "detail": "exec /etc: EACCES"},
            126,
            "bulkhead: start_failed: exec /etc: EACCES\n",
        ),
        (
            {"reason": "lost", "code": None, "exit_code": -1, "detail": "the launcher died"},
            125,
            "bulkhead: lost: the launcher died\n",
        ),
    ],
    ids=lambda value: str(value.get("reason", value.get("code"))) if isinstance(value, dict) else None,
)
async def test_exit_status_tells_how_it_ended(exit_: dict[str, object], status: int, said: str) -> None:
    async with fake_service(ending(**exit_)) as service:
        ended = await bulkhead(service.url, "run", "--", "cmd")
    assert (ended.status, ended.stdout, ended.stderr) == (status, b"", said)
    assert service.asked() == WHOLE_LIFE


async def test_detail_cannot_write_escape_sequences_to_the_terminal() -> None:
    async with fake_service(ending(reason="lost", code=None, exit_code=-1, detail="\x1b[2J\r\nx")) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert ended.stderr == "bulkhead: lost: \\x1b[2J  x\n"


async def test_bodies_carry_what_was_typed_and_nothing_else() -> None:
    typed = (
        "run --runtime vm --timeout 2 --env A=1 -e B==x --workdir /tmp --memory-mib 64 --cpus 0.5 --profile loopback"
    )
    async with fake_service(ending()) as service:
        ended = await bulkhead(service.url, *typed.split(), "-l", "k=v", "--", "sh", "-c", "--", "--json")
        await bulkhead(service.url, "run", "true")
    assert ended.status == 0
    assert service.body_of("POST /sandboxes") == {
        "runtime": "vm",
        "env": {"A": "1", "B": "=x"},
        "workdir": "/tmp",
        "policy": {"profile": "loopback"},
        "labels": {"k": "v"},
        "limits": {"cpus": 0.5, "memory_mib": 64},
    }
    assert service.body_of(f"POST {EXECUTIONS}") == {
        "command": ["sh", "-c", "--", "--json"],
        "stdin": "none",
        "timeout_seconds": 2,
    }
    assert service.requests[4].body == {}


async def test_what_is_wanted_of_the_isolation_is_passed_on() -> None:
    typed = (
        "--runtime auto --isolation-min vm --image python:3.12 --storage disk --requires images --requires pty "
        "--profile open --network direct --allow example.org --allow 10.0.0.0/8"
    )
    async with fake_service(ending()) as service:
        await bulkhead(service.url, "run", *typed.split(), "true")
        await bulkhead(service.url, "create", *typed.split())
        await bulkhead(service.url, "create", "--network", "none")
    bodies = [r.body for r in service.requests if str(r) == "POST /sandboxes"]
    assert (
        bodies[0]
        == bodies[1]
        == {
            "runtime": "auto",
            "isolation_min": "vm",
            "storage": "disk",
            "image": "python:3.12",
            "requires": ["images", "pty"],
            "policy": {"profile": "open", "network": {"mode": "direct", "allow": ["example.org", "10.0.0.0/8"]}},
        }
    )  # fmt: skip - one body
    assert bodies[2] == {"policy": {"network": {"mode": "none"}}}


@pytest.mark.parametrize("mode", [[], ["--network", "none"]])
async def test_hosts_without_the_mode_that_reaches_them_are_refused(mode: list[str]) -> None:
    async with fake_service() as service:
        ended = await bulkhead(service.url, "run", *mode, "--allow", "example.org", "true")
    assert (ended.status, ended.stderr) == (125, "bulkhead: --allow needs --network proxy (or direct)\n")
    assert service.asked() == []


@pytest.mark.parametrize(
    ("env", "runtime"),
    [
        ({"BULKHEAD_RUNTIME": "boxlite", "OPENSHELL_RUNTIME": "process"}, "boxlite"),
        ({"OPENSHELL_RUNTIME": "process"}, "process"),
        ({"BULKHEAD_RUNTIME": ""}, None),
    ],
)
async def test_runtime_comes_from_the_environment_when_not_typed(env: dict[str, str], runtime: str | None) -> None:
    async with fake_service(ending()) as service:
        await bulkhead(service.url, "run", "true", env=env)
    assert service.body_of("POST /sandboxes").get("runtime") == runtime


async def test_sandbox_outlives_a_long_timeout() -> None:
    async with fake_service(ending()) as service:
        await bulkhead(service.url, "run", "--timeout", "7200", "true")
        body = service.body_of("POST /sandboxes")
    assert body["ttl_seconds"] > 7200
    assert body["limits"] == {"wall_seconds": 7200}


@pytest.mark.parametrize(("typed", "limits"), [(["--wall-seconds", "9000"], {"wall_seconds": 9000}), ([], None)])
async def test_wall_time_is_what_was_typed_and_else_the_services_own(typed: list[str], limits: object) -> None:
    async with fake_service(ending()) as service:
        await bulkhead(service.url, "run", "--timeout", "7200" if typed else "3600", *typed, "true")
    assert service.body_of("POST /sandboxes").get("limits") == limits


async def test_keep_leaves_the_sandbox_and_names_it() -> None:
    async with fake_service(ending(code=3)) as service:
        ended = await bulkhead(service.url, "run", "--keep", "true")
    assert (ended.status, ended.stderr) == (3, f"bulkhead: the sandbox {SANDBOX} is kept\n")
    assert f"DELETE {BASE}" not in service.asked()


async def test_exec_takes_options_on_both_sides_of_the_sandbox_and_leaves_it() -> None:
    async with fake_service(ending(code=4)) as service:
        one = await bulkhead(service.url, "exec", "--timeout", "9", SANDBOX, "-e", "A=1", "--", "ls", "-l")
        two = await bulkhead(service.url, "exec", SANDBOX, "sh", "-c", "x", "--json")
    assert (one.status, two.status) == (4, 4)
    first, second = (r.body for r in service.requests if r.method == "POST")
    assert first == {"command": ["ls", "-l"], "stdin": "none", "timeout_seconds": 9, "env": {"A": "1"}}
    assert second == {"command": ["sh", "-c", "x", "--json"], "stdin": "none"}
    assert not [a for a in service.asked() if a.startswith("DELETE")]


async def test_ids_are_of_what_is_made() -> None:
    async with fake_service(ending()) as service:
        await bulkhead(service.url, "run", "--id", "mine", "--on-output-limit", "kill", "true")
        await bulkhead(service.url, "create", "--id", "other")
        await bulkhead(service.url, "exec", SANDBOX, "--id", "build", "--on-output-limit", "drop_oldest", "true")
    bodies = [r.body for r in service.requests if r.method == "POST"]
    start = {"command": ["true"], "stdin": "none"}
    assert bodies == [
        {"id": "mine"},
        {**start, "on_output_limit": "kill"},
        {"id": "other"},
        {**start, "on_output_limit": "drop_oldest", "id": "build"},
    ]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["echo hi; ls"],
            "a command is a program and its arguments, not a shell line. To run a shell line: sh -c 'echo hi; ls'",
        ),
        (["ls -l", "x"], "a command is a program and its arguments, not a shell line. To run a shell line: sh -c '…'"),
        (["x " * 99], "a command is a program and its arguments, not a shell line. To run a shell line: sh -c '…'"),
        (["nope"], "ENOENT"),
    ],
    ids=["line", "line and argument", "long line", "program"],
)
async def test_shell_line_as_a_program_is_answered_with_one_line_of_advice(command: list[str], said: str) -> None:
    async with fake_service(ending(reason="start_failed", code=None, exit_code=127, detail="ENOENT")) as service:
        ended = await bulkhead(service.url, "run", "--", *command)
    assert (ended.status, ended.stderr) == (127, f"bulkhead: start_failed: {said}\n")


async def test_gaps_are_told_once_and_summed_up() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        for begin_ in range(0, 30, 10):
            await wire.text(type="gap", channel="stdout", **{"from": begin_, "to": begin_ + 9})
            await wire.output(b"x")
        await wire.text(type="gap", channel="stderr", **{"from": 0, "to": 5})
        await wire.exit(stdout=b"?" * 30, stderr=b"?" * 5)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "cmd")
        as_json = json.loads((await bulkhead(service.url, "run", "--json", "cmd")).stdout)
    assert (ended.status, ended.stdout) == (0, b"xxx")
    assert ended.stderr.splitlines() == [
        "bulkhead: stdout: bytes 0 to 8 are missing: they were dropped before they were read",
        "bulkhead: stderr: bytes 0 to 4 are missing: they were dropped before they were read",
        "bulkhead: stdout: 27 bytes are missing in 3 gaps",
    ]
    assert (as_json["stdout_truncated"], as_json["stderr_truncated"]) == (True, True)


async def test_loss_that_nobody_could_measure_is_told_without_a_number() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"ab")
        for _ in range(2):
            await wire.text(type="gap", channel="stdout", **{"from": 2, "to": None})
        await wire.output(b"yz")
        await wire.exit(code=3, dropped_bytes=None)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "cmd")
        followed = await bulkhead(service.url, "logs", "-f", SANDBOX, EXECUTION)
        as_json = json.loads((await bulkhead(service.url, "run", "--json", "cmd")).stdout)
    said = "bulkhead: stdout: the runtime lost some output; nobody knows how much\n"
    assert (ended.status, ended.stdout, ended.stderr) == (3, b"abyz", said)
    assert (followed.status, followed.stdout, followed.stderr) == (3, b"abyz", said)
    assert (as_json["stdout_truncated"], as_json["stderr_truncated"]) == (True, False)


async def test_digest_still_counts_after_a_loss_that_nobody_could_measure() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.text(type="gap", channel="stdout", **{"from": 0, "to": None})
        await wire.output(b"bytes")
        await wire.exit(stdout=b"bytez")

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert (ended.status, ended.stdout) == (125, b"bytes")
    assert "the digest of its 5 bytes is wrong" in ended.stderr


# --- stdin


async def test_stdin_reaches_the_program_to_its_end_of_file() -> None:
    data = os.urandom(700_000)

    async def program(wire: Wire) -> None:
        await wire.start()
        received = await wire.read_stdin()
        await wire.output(received[:50_000])
        await wire.exit(code=0 if received == data else 1)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "cat", stdin=data)
    assert (ended.status, ended.stdout) == (0, data[:50_000])
    assert service.body_of(f"POST {EXECUTIONS}")["stdin"] == "open"
    assert service.requests[2].query["stdin"] == "true"


async def test_stdin_that_the_program_closed_is_no_failure() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.read()
        await wire.text(type="problem", problem=json.loads(problem(409, "wrong_state", "wrong state")[2]))
        await wire.output(b"done\n")
        await wire.exit(code=0)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "head", stdin=b"x" * 3_000_000)
    assert (ended.status, ended.stdout, ended.stderr) == (0, b"done\n", "")


async def test_program_that_ended_before_the_stream_opened_is_followed_without_stdin() -> None:
    refusals = 0

    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"early\n")
        await wire.exit(code=5)

    class Early(FakeService):
        async def _stream(self, request, reader, writer):  # type: ignore[no-untyped-def]  # the fake's own
            nonlocal refusals
            if request.query["stdin"] != "false":
                refusals += 1
                await self._reply(writer, problem(409, "wrong_state", "wrong state", detail="it has ended"))
                return
            await super()._stream(request, reader, writer)

    async with fake_service(program, kind=Early) as service:
        ended = await bulkhead(service.url, "run", "true", stdin=b"")
    assert (ended.status, ended.stdout, refusals) == (5, b"early\n", 1)


async def test_silent_stdin_does_not_delay_the_end() -> None:
    read_end, write_end = os.pipe()
    try:
        async with fake_service(ending(code=6)) as service:
            process = await begin(service.url, "run", "true", stdin=read_end)
            assert await process.wait() == 6
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_terminal_is_not_read() -> None:
    master, slave = os.openpty()
    try:
        async with fake_service(ending()) as service:
            process = await begin(service.url, "run", "true", stdin=slave)
            assert await process.wait() == 0
        assert service.body_of(f"POST {EXECUTIONS}")["stdin"] == "none"
    finally:
        os.close(master)
        os.close(slave)


# --- output that cannot be delivered


async def test_reader_that_leaves_ends_the_run_quietly() -> None:
    async with fake_service(prints_and_stays(b"first\n")) as service:
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = await begin(service.url, "run", "yes", stdout=write_end)
        os.close(write_end)
        _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")
    assert service.asked() == WHOLE_LIFE


async def test_reader_that_leaves_kills_the_execution_in_a_kept_sandbox() -> None:
    async with fake_service(prints_and_stays(b"first\n")) as service:
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = await begin(service.url, "exec", SANDBOX, "yes", stdout=write_end)
        os.close(write_end)
        assert await process.wait() == 141
    assert service.asked()[-1] == f"DELETE {EXECUTIONS}/{EXECUTION}"


async def test_closed_stdout_is_not_mistaken_for_a_socket() -> None:
    async with fake_service(prints_and_stays(b"DELETE / HTTP/1.1\r\n\r\n")) as service:
        process = await begin(service.url, "run", "cmd", stdout=None, preexec_fn=lambda: os.close(1))
        assert await process.wait() == 141
    assert service.asked() == WHOLE_LIFE


async def test_full_disk_is_told() -> None:
    async with fake_service(prints_and_stays(b"x")) as service:
        full = os.open("/dev/full", os.O_WRONLY)
        process = await begin(service.url, "run", "cmd", stdout=full)
        os.close(full)
        _, err = await process.communicate()
    assert (process.returncode, err) == (125, b"bulkhead: stdout: No space left on device\n")
    assert service.asked() == WHOLE_LIFE


# --- JSON


async def test_json_holds_the_whole_run() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output("grün\n".encode())
        await wire.output(b"oops\n", 2)
        await wire.exit(code=3)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "--json", "cmd")
    assert ended.status == 3
    assert json.loads(ended.stdout) == {
        "sandbox_id": SANDBOX,
        "execution_id": EXECUTION,
        "status": 3,
        "exit": {"reason": "exited", "code": 3},
        "stdout": "grün\n",
        "stderr": "oops\n",
        "encoding": "utf-8",
        "stdout_truncated": False,
        "stderr_truncated": False,
    }


async def test_json_carries_bytes_that_are_no_text_as_base64() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"\xff\x00")
        await wire.exit()

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "--json", "cmd")
    found = json.loads(ended.stdout)
    assert (found["stdout"], found["stderr"], found["encoding"]) == ("/wA=", "", "base64")


async def test_json_keeps_the_last_64_mib_of_a_channel() -> None:
    size = 64 * 1024 * 1024

    async def program(wire: Wire) -> None:
        await wire.start()
        digest = hashlib.sha256()
        for piece in [b"first", *[b"x" * 2**16] * 1024, b"last"]:
            await wire._frame(2, b"\x01" + piece)  # `output` would copy all that was sent for each piece
            digest.update(piece)
        await wire.output(b"err", 2)
        sums = {"stdout": {"bytes": size + 9, "sha256": digest.hexdigest()}}
        await wire.text(type="exit", exit_code=0, exit={"reason": "exited", "code": 0}, **sums)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "--json", "cmd")
    found = json.loads(ended.stdout)
    assert ended.status == 0
    assert found["stdout"] == "x" * (size - 4) + "last"
    assert (found["stderr"], found["stdout_truncated"], found["stderr_truncated"]) == ("err", True, False)
