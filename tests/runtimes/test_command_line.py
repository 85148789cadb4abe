"""`bulkhead run` over every runtime: the same words, the same exit statuses, whatever the wall."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.runtimes.places import Place
from tests.service import PROJECT


def arguments_for(place: Place, *words: str) -> tuple[list[str], dict[str, str]]:
    """What a person types, and the environment: nothing of the tests' own decides for the command."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BULKHEAD_", "OPENSHELL_", "BOXLITE_")) and "proxy" not in name.lower()
    }
    return [sys.executable, "-m", "app.cli", *words], {**kept, "BULKHEAD_CLIENT_URL": place.service.url}


def bulkhead(place: Place, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv, environment = arguments_for(place, *words)
    return subprocess.run(
        argv, cwd=PROJECT, env=environment, input=given, capture_output=True, timeout=250, check=False
    )


def execute(
    place: Place, sandbox: str, *command: str, options: Sequence[str] = (), given: bytes = b""
) -> tuple[int, bytes, bytes]:
    done = bulkhead(place, "exec", *options, sandbox, "--", *command, given=given)
    return done.returncode, done.stdout, done.stderr


def test_run_makes_a_sandbox_of_that_runtime_and_leaves_none(place: Place) -> None:
    words = ["run", "--runtime", place.runtime, "--memory-mib", "128", "--json", "--", "sh", "-c"]
    done = bulkhead(place, *words, "cat; echo told >&2; exit 7", given=b"typed\n")
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["exit"]["reason"], told["exit"]["code"]) == (7, "exited", 7)
    assert (told["stdout"], told["stderr"]) == ("typed\n", "told\n")
    left = place.show(told["sandbox_id"])
    assert (left["runtime"], left["state"]) == (place.runtime, "destroyed")


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_status_is_the_programs(place: Place, shared: str, script: str, status: int) -> None:
    assert execute(place, shared, "sh", "-c", script) == (status, b"", b"")


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_what_cannot_start_has_the_shells_status_and_a_sentence(
    place: Place, shared: str, program: str, status: int
) -> None:
    found, out, err = execute(place, shared, program)
    assert (found, out) == (status, b"")
    assert err.startswith(b"bulkhead: start_failed: ")
    assert program.encode() in err


def test_timeout_is_124_and_says_so(place: Place, shared: str) -> None:
    found, out, err = execute(place, shared, "sh", "-c", "echo begun; sleep 100", options=["--timeout", "1"])
    assert (found, out) == (124, b"begun\n")
    assert err.startswith(b"bulkhead: timeout: still running after 1 s")


def test_each_channel_goes_to_its_own_and_stdin_to_the_program(place: Place, shared: str) -> None:
    script = "while read -r line; do echo out $line; echo err $line >&2; done"
    assert execute(place, shared, "sh", "-c", script, given=b"1\n2\n") == (0, b"out 1\nout 2\n", b"err 1\nerr 2\n")


def test_output_is_shown_while_the_program_runs_and_ctrl_c_goes_to_it(place: Place, shared: str) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    argv, environment = arguments_for(place, "exec", shared, "--", "sh", "-c", script)
    with subprocess.Popen(
        argv, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"caught\n"
    assert process.returncode == 5


def test_a_refusal_is_125_and_names_what_is_missing(place: Place) -> None:
    missing = next(name for name in ("images", "kill_tree") if not place.promises(name))
    done = bulkhead(place, "run", "--runtime", place.runtime, "--requires", missing, "--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    assert missing.encode() in done.stderr
