"""The stream of an execution over every runtime: live, resumable, the exit last."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

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
    lines = 4000
    script = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); printf '%0255d\\n' $i; done"
    running = place.start(shared, "sh", "-c", script, timeout_seconds=110)
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert frame["exit"]["code"] == 0
    assert bytes(viewer.out["stdout"]) == b"".join(b"%0255d\n" % number for number in range(1, lines + 1))
    assert viewer.gaps == []
    assert frame["stdout"]["dropped_bytes"] == 0


def test_binary_output_of_both_channels_arrives_as_it_was_written(place: Place, shared: str) -> None:
    every = "printf '" + "".join(f"\\{value:03o}" for value in range(256)) + "' >/tmp/every"
    double = "cat /tmp/every /tmp/every >/tmp/twice && mv /tmp/twice /tmp/every"
    script = f"{every}; for n in $(seq 8); do {double}; done; cat /tmp/every & cat /tmp/every >&2; wait"
    running = place.start(shared, "sh", "-c", script, timeout_seconds=110)
    with running.stream() as viewer:
        frame = viewer.until_exit()
    out = err = bytes(range(256)) * 256
    assert (bytes(viewer.out["stdout"]), bytes(viewer.out["stderr"])) == (out, err)
    assert frame["stdout"] == {"bytes": len(out), "dropped_bytes": 0, "sha256": hashlib.sha256(out).hexdigest()}
    assert frame["stderr"] == {"bytes": len(err), "dropped_bytes": 0, "sha256": hashlib.sha256(err).hexdigest()}


def test_many_viewers_see_the_same_while_it_is_printed(place: Place, shared: str) -> None:
    script = "read go; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; echo err $i >&2; done"
    running = place.start(shared, "sh", "-c", script, stdin="open", timeout_seconds=110)
    viewers = [running.stream("?stdin=true" if n == 0 else "") for n in range(6)]
    threads = [threading.Thread(target=viewer.until_exit) for viewer in viewers]
    for thread in threads:
        thread.start()
    viewers[0].send(b"go\n")
    for thread in threads:
        thread.join(100)
    for viewer in viewers:
        assert bytes(viewer.out["stdout"]) == b"".join(b"line %d\n" % i for i in range(1, 2001))
        assert bytes(viewer.out["stderr"]) == b"".join(b"err %d\n" % i for i in range(1, 2001))
        viewer.check()
        viewer.stack.close()


def test_a_viewer_that_is_cut_again_and_again_misses_nothing(place: Place, shared: str) -> None:
    running = place.start(shared, "seq", "1", "60000", timeout_seconds=110)
    got = b""
    ending: dict[str, Any] = {}
    while not ending:
        with running.stream(f"?stdout_offset={len(got)}") as viewer:
            while len(viewer.out["stdout"]) < 50_000 and not viewer.exit:
                viewer.step()
        got, ending = got + bytes(viewer.out["stdout"]), viewer.exit
    assert got == b"".join(b"%d\n" % i for i in range(1, 60_001))
    assert ending["stdout"]["sha256"] == hashlib.sha256(got).hexdigest()


def test_plain_output_is_had_where_it_is_asked_for(place: Place, shared: str) -> None:
    running = place.start(shared, "echo", "x", output_mode="plain")
    assert running.exit()["code"] == 0
    shown = place.service.call("GET", running.path)[1]
    plain = place.runtime == "boxlite"
    assert shown["output_mode"] == ("plain" if plain else "exact")
    assert shown["output"]["stdout"] == {"bytes": 2, "dropped_bytes": None if plain else 0}


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
