"""Commands through the API: the same words, endings and answers whatever the wall."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from tests.kernel.talk import start
from tests.runtimes.places import Place

Promised = Callable[[str], None]


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_code_is_the_programs(place: Place, shared: str, code: int) -> None:
    ended = place.start(shared, "sh", "-c", f"exit {code}").exit()
    assert (ended["reason"], ended["code"], ended["signal"]) == ("exited", code, None)
    assert ended["duration_seconds"] > 0


def test_output_channels_environment_and_directory_are_the_commands(place: Place, shared: str) -> None:
    script = 'echo "$GIVEN, $OWN"; pwd; echo problem >&2'
    running = place.start(shared, "sh", "-c", script, env={"OWN": "by the command"}, workdir="/tmp")
    assert running.exit()["code"] == 0
    assert running.out() == b"by the sandbox, by the command\n/tmp\n"
    assert running.out("stderr") == b"problem\n"


def test_arguments_arrive_exactly(place: Place, shared: str) -> None:
    arguments = ["", " a  b ", "$HOME `id` 'x' \"y\"", "ä€😀", "-n", "line\nbreak", "x" * 90_000]
    running = place.start(shared, "sh", "-c", 'for a in "$@"; do printf "%s\\001" "$a"; done', "sh", *arguments)
    assert running.exit()["code"] == 0
    assert running.out().decode().split("\1")[:-1] == arguments


def test_working_directory_is_made_and_writable(place: Place, shared: str) -> None:
    running = place.start(shared, "sh", "-c", "pwd; echo x > file && cat file && rm file")
    assert running.exit()["code"] == 0
    assert running.out() == b"/workspace\nx\n"


@pytest.mark.parametrize(
    ("command", "exit_code"), [(["no-such-program"], 127), (["/etc/passwd"], 126), (["/"], 126), (["/no/such"], 127)]
)
def test_command_that_cannot_start_is_start_failed(
    place: Place, shared: str, command: list[str], exit_code: int
) -> None:
    running = place.start(shared, *command)
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert (frame["exit"]["reason"], frame["exit_code"]) == ("start_failed", exit_code)
    assert command[0] in frame["exit"]["detail"]


def test_missing_working_directory_is_start_failed_and_named(place: Place, shared: str) -> None:
    ended = place.start(shared, "ls", workdir="/no/such/directory").exit()
    assert ended["reason"] == "start_failed"
    assert "/no/such/directory" in ended["detail"]


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_death_by_signal_is_told_by_name(place: Place, shared: str, signal: str) -> None:
    running = place.start(shared, "sh", "-c", f"kill -{signal.removeprefix('SIG')} $$")
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert (frame["exit"]["reason"], frame["exit"]["signal"], frame["exit"]["code"]) == ("signaled", signal, None)
    assert frame["exit_code"] < 0


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGKILL"])
def test_signal_reaches_the_group(place: Place, shared: str, promised: Promised, name: str) -> None:
    promised("signal_group")
    child = "sh -c 'trap \"echo child; exit\" HUP INT TERM USR1; echo ready; while :; do sleep 0.1; done'; true"
    # A shell runs its trap when its child has ended. So the first process dies after the child's line, by the signal.
    waits = "" if name == "SIGKILL" else f"trap 'trap - {name[3:]}; kill -s {name[3:]} $$' {name[3:]}; "
    running = place.start(shared, "sh", "-c", waits + child)
    running.saw(b"ready\n")
    assert running.signal(name) == 204
    ended = running.exit()
    assert (ended["reason"], ended["signal"]) == ("signaled", name)
    assert (b"child\n" in running.out()) == (name != "SIGKILL")


def test_signal_after_the_end_is_409(place: Place, shared: str) -> None:
    running = place.start(shared, "true")
    running.exit()
    assert running.signal("SIGTERM") == 409


def test_timeout_kills_what_was_started_and_says_so(place: Place, shared: str) -> None:
    running = place.start(shared, "sh", "-c", "trap '' TERM; sleep 300 & sleep 300", timeout_seconds=1.5)
    ended = running.exit()
    assert (ended["reason"], ended["signal"]) == ("timeout", "SIGKILL")
    assert 1.4 < ended["duration_seconds"] < 200, "the command itself takes 300"
    assert "sleep 300" not in _processes(place, shared)


def test_delete_kills_daemons_too(place: Place, shared: str) -> None:
    script = "setsid sleep 301 </dev/null >/dev/null 2>&1 & setsid sleep 301 & echo started; sleep 301"
    running = place.start(shared, "sh", "-c", script)
    running.saw(b"started\n")
    assert running.delete() == 204
    assert running.delete() == 204
    ended = running.exit()
    assert (ended["reason"], ended["signal"]) == ("killed", "SIGKILL")
    assert ("may live on" in ended["detail"]) != place.promises("kill_tree")
    assert "sleep 301" not in _processes(place, shared)


def test_output_limit_kills(place: Place, shared: str) -> None:
    sandbox = place.create(limits={"memory_mib": 128, "output_bytes": 5000}) if place.name != "machine" else shared
    if place.name == "machine":
        pytest.skip("a boot of its own for a rule of the core: the double has it")
    running = place.start(sandbox, "sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyy; done", on_output_limit="kill")
    assert running.exit()["reason"] == "output_limit"
    assert running.out() == (b"y" * 20 + b"\n") * 238 + b"yy"
    place.delete(sandbox)


def test_stdin_arrives_whole_and_ends(place: Place, shared: str) -> None:
    data = "".join(f"line {number} €\n" for number in range(20_000)).encode()
    running = place.start(shared, "sh", "-c", "cat", stdin="open")
    with running.stream("?stdin=true") as viewer:
        for begin in range(0, len(data), 30_000):
            viewer.socket.send(data[begin : begin + 30_000])
        viewer.socket.send('{"type":"stdin_eof"}')
        frame = viewer.until_exit()
    assert frame["exit"]["code"] == 0
    assert bytes(viewer.out["stdout"]) == data
    assert frame["stdout"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_stdin_none_is_empty(place: Place, shared: str) -> None:
    running = place.start(shared, "cat")
    assert running.exit()["code"] == 0
    assert running.out() == b""


def test_two_executions_run_beside_each_other(place: Place, shared: str) -> None:
    first = place.start(shared, "sh", "-c", "read x; echo first $x", stdin="open")
    second = start(place.service, shared, "sh", "-c", "echo second")
    assert second.exit()["code"] == 0
    assert second.out() == b"second\n"
    with first.stream("?stdin=true") as viewer:
        viewer.socket.send(b"go\n")
        assert viewer.until_exit()["exit"]["code"] == 0
    assert bytes(viewer.out["stdout"]) == b"first go\n"


def _processes(place: Place, sandbox: str) -> str:
    script = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done"
    running = place.start(sandbox, "sh", "-c", script)
    assert running.exit()["code"] == 0
    return running.out().decode()
