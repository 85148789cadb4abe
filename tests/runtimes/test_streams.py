"""The stream of an execution over every runtime: live, resumable, the exit last."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.runtimes.places import Place

Promised = Callable[[str], None]


def test_output_is_live_and_a_viewer_resumes_where_it_was(place: Place, shared: str) -> None:
    running = place.start(shared, "sh", "-c", "echo one; read x; echo two $x; read x; echo three $x", stdin="open")
    with running.stream("?stdin=true") as viewer:
        viewer.until(b"one\n")
        viewer.socket.send(b"a\n")
        viewer.until(b"two a\n")
    with running.stream("?stdin=take&stdout_offset=4") as again:
        again.socket.send(b"b\n")
        frame = again.until_exit()
    assert bytes(again.out["stdout"]) == b"two a\nthree b\n"
    assert frame["stdout"]["bytes"] == len(b"one\ntwo a\nthree b\n")
    assert frame["exit_code"] == 0


def test_a_megabyte_that_is_printed_in_pieces_arrives(place: Place, shared: str) -> None:
    lines = 4000 if place.promises("exact_output") else 800
    script = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); printf '%0255d\\n' $i; done"
    running = place.start(shared, "sh", "-c", script, timeout_seconds=110)
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert frame["exit"]["code"] == 0
    assert bytes(viewer.out["stdout"]) == b"".join(b"%0255d\n" % number for number in range(1, lines + 1))
    assert viewer.gaps == []
    assert frame["stdout"]["dropped_bytes"] == (0 if place.promises("exact_output") else None)


def test_terminal_is_a_terminal_and_is_resized(place: Place, shared: str, promised: Promised) -> None:
    promised("pty")
    script = "trap 'stty size' WINCH; tty; stty -echo; echo ready; while :; do sleep 0.1; done"
    running = place.start(shared, "sh", "-c", script, tty={"rows": 31, "cols": 99})
    with running.stream() as viewer:
        viewer.until(b"ready\r\n")
        status, answer = place.service.call("POST", f"{running.path}/resize", {"rows": 40, "cols": 120})
        assert status == 204, answer
        viewer.until(b"40 120\r\n")
        viewer.socket.send(json.dumps({"type": "resize", "rows": 20, "cols": 70}))
        viewer.until(b"20 70\r\n")
        assert running.signal("SIGKILL") == 204
        viewer.until_exit()
    assert b"/dev/pts/" in viewer.out["stdout"]
    assert viewer.out["stderr"] == b""


def test_terminal_takes_keys_as_a_person_types_them(place: Place, shared: str, promised: Promised) -> None:
    promised("pty")
    running = place.start(shared, "sh", "-c", "read line; echo got $line; cat", tty={"rows": 24, "cols": 80})
    with running.stream("?stdin=true") as viewer:
        viewer.socket.send(b"hello\r")
        viewer.until(b"got hello\r\n")
        viewer.socket.send(b"again\r")
        viewer.until(b"again\r\nagain\r\n")  # cat runs: a shell that forks just now would swallow what comes
        viewer.socket.send(b"\x03")
        frame = viewer.until_exit()
    assert frame["exit"]["signal"] == "SIGINT"


def test_resize_without_a_terminal_is_409(place: Place, shared: str) -> None:
    running = place.start(shared, "sleep", "100")
    assert place.service.call("POST", f"{running.path}/resize", {"rows": 4, "cols": 9})[0] == 409
    running.delete()


def test_tty_is_refused_by_name_where_it_is_not_promised(place: Place, shared: str) -> None:
    if place.promises("pty"):
        pytest.skip(f"{place.runtime} has terminals")
    body = {"command": ["true"], "tty": {"rows": 24, "cols": 80}}
    status, answer = place.service.call("POST", f"/sandboxes/{shared}/executions", body)
    assert (status, answer["missing"]) == (422, ["pty"])
