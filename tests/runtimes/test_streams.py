"""The stream of an execution over every runtime: live, resumable, the exit last."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.kernel import host, raw
from tests.runtimes.places import Place

Promised = Callable[[str], None]
MIB = 1 << 20
EVERY = "printf '" + "".join(f"\\{value:03o}" for value in range(256)) + "'"  # each byte that there is


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
    running = place.start(shared, "sh", "-c", script, timeout_seconds=250)
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert frame["exit"]["code"] == 0
    assert bytes(viewer.out["stdout"]) == b"".join(b"%0255d\n" % number for number in range(1, lines + 1))
    assert viewer.gaps == []
    assert frame["stdout"]["dropped_bytes"] == 0


def test_binary_output_of_both_channels_arrives_and_a_viewer_resumes_at_any_offset(place: Place, shared: str) -> None:
    double = "cat /tmp/every /tmp/every >/tmp/twice && mv /tmp/twice /tmp/every"
    script = f"{EVERY} >/tmp/every; for n in $(seq 8); do {double}; done; cat /tmp/every & cat /tmp/every >&2; wait"
    running = place.start(shared, "sh", "-c", script, timeout_seconds=250)
    with running.stream() as viewer:
        frame = viewer.until_exit()
    out = bytes(range(256)) * 256
    told = {"bytes": len(out), "dropped_bytes": 0, "sha256": hashlib.sha256(out).hexdigest()}
    assert (bytes(viewer.out["stdout"]), bytes(viewer.out["stderr"])) == (out, out)
    assert (frame["stdout"], frame["stderr"], frame["exit_code"], frame["exit"]["reason"]) == (told, told, 0, "exited")
    for offset in (0, 1, 32_767, 32_768, len(out) - 1, len(out), *random.Random(1).sample(range(len(out)), 20)):
        with running.stream(f"?stdout_offset={offset}&stderr_offset={len(out) - offset}") as viewer:
            viewer.until_exit()
        assert (viewer.start["stdout_offset"], viewer.start["stderr_offset"]) == (offset, len(out) - offset)
        assert viewer.out == {"stdout": out[offset:], "stderr": out[len(out) - offset :]}
    with pytest.raises(InvalidStatus) as refused, running.stream(f"?stdout_offset={len(out) + 1}"):
        pass
    assert refused.value.response.status_code == 416


@pytest.mark.parametrize("size", [1, 7])
def test_small_writes_arrive_exactly(place: Place, shared: str, size: int) -> None:
    """One byte each, and characters in the middle; alternately to both channels, and without a newline at the end."""
    text = ("grün €😀\r\n\t\x1b[0m\0".encode() + b"no newline") * (5 if place.name == "machine" else 50)
    writes = [text[at : at + size] for at in range(0, len(text), size)]
    words = ["".join(f"\\{byte:03o}" for byte in write) for write in writes]
    script = 'to=2; for word; do to=$((3 - to)); printf "$word" >&$to; done'
    running = place.start(shared, "sh", "-c", script, "sh", *words)
    with running.stream() as viewer:
        viewer.until_exit()
    assert viewer.out == {"stdout": b"".join(writes[::2]), "stderr": b"".join(writes[1::2])}
    viewer.check()


def test_many_viewers_see_the_same_while_it_is_printed(place: Place, shared: str) -> None:
    """Beside some that never read."""
    lines, count = (2000, 6) if place.name == "machine" else (20_000, 20)
    script = f"read go; i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; echo err $i >&2; done"
    running = place.start(shared, "sh", "-c", script, stdin="open", timeout_seconds=250)
    viewers = [running.stream("?stdin=true" if n == 0 else "") for n in range(count)]
    frozen = [raw.stalled_viewer(place.service, f"{running.path}/stream") for _ in range(5)]
    threads = [threading.Thread(target=viewer.until_exit) for viewer in viewers]
    for thread in threads:
        thread.start()
    viewers[0].send(b"go\n")
    for thread in threads:
        thread.join(100)
    for viewer in viewers:
        assert bytes(viewer.out["stdout"]) == b"".join(b"line %d\n" % i for i in range(1, lines + 1))
        assert bytes(viewer.out["stderr"]) == b"".join(b"err %d\n" % i for i in range(1, lines + 1))
        viewer.check()
        viewer.stack.close()
    for connection in frozen:
        connection.close()


def test_a_viewer_that_is_cut_again_and_again_misses_nothing(place: Place, shared: str) -> None:
    last, often = (60_000, 50_000) if place.name == "machine" else (300_000, 300_000)
    running = place.start(shared, "seq", "1", str(last), timeout_seconds=250)
    got = b""
    ending: dict[str, Any] = {}
    while not ending:
        with running.stream(f"?stdout_offset={len(got)}") as viewer:
            while len(viewer.out["stdout"]) < often and not viewer.exit:
                viewer.step()
        got, ending = got + bytes(viewer.out["stdout"]), viewer.exit
    assert got == b"".join(b"%d\n" % i for i in range(1, last + 1))
    assert ending["stdout"]["sha256"] == hashlib.sha256(got).hexdigest()


def test_output_beyond_the_limit_is_told_as_a_gap(place: Place) -> None:
    if place.name == "machine":
        pytest.skip("a boot of its own for a rule of the core: the double has it")
    sandbox = place.create(limits={"memory_mib": 128, "output_bytes": 100_000})
    text = b"".join(b"%09d\n" % i for i in range(1, 100_001))
    running = place.start(sandbox, "seq", "-f", "%09.0f", "1", "100000")
    assert running.exit()["code"] == 0
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert viewer.gaps == [{"type": "gap", "channel": "stdout", "from": 0, "to": 900_000}]
    assert viewer.out["stdout"] == text[900_000:]
    assert frame["stdout"] == {"bytes": 10**6, "dropped_bytes": 900_000, "sha256": hashlib.sha256(text).hexdigest()}
    with running.stream("?stdout_offset=950000") as late:
        late.until_exit()
    assert (late.gaps, bytes(late.out["stdout"])) == ([], text[950_000:])
    place.delete(sandbox)


def test_a_gigabyte_passes_while_the_gateways_memory_stays_flat(place: Place) -> None:
    if place.name != "process":
        pytest.skip("it would take half a minute or more: the next test has less of it")
    size = 1_000_000_000
    sandbox = place.create(limits={"memory_mib": 128, "output_bytes": 256 * MIB})
    gateway = place.service.children()["gateway"]
    assert place.start(sandbox, "head", "-c", "20000000", "/dev/zero").exit()["code"] == 0  # whatever is allocated once
    before, most = host.resident_mib(gateway), 0.0
    running = place.start(sandbox, "head", "-c", str(size), "/dev/zero")
    with running.stream() as viewer:
        viewer.keep, frames = False, 0
        while not viewer.exit:
            assert viewer.step()
            frames += 1
            if frames % 256 == 0:
                most = max(most, host.resident_mib(gateway))
    assert viewer.exit["stdout"]["bytes"] == size
    missed = sum(gap["to"] - gap["from"] for gap in viewer.gaps)
    assert viewer.counts["stdout"] + missed == size
    if not missed:  # this client may be slower than the program; what it misses it is told
        viewer.check()
    assert most - before <= 32, f"{before:.0f} MiB before, {most:.0f} at most"
    place.delete(sandbox)


def test_viewers_that_never_read_hold_up_neither_the_program_nor_another_viewer(place: Place, shared: str) -> None:
    """A program that had to wait for one of them would never end. The gateway keeps nothing for them."""
    size = {"process": 200_000_000, "double": 30_000_000, "machine": 300_000}[place.name]
    gateway = place.service.children()["gateway"]
    running = place.start(shared, "sh", "-c", f"read go; head -c {size} /dev/zero", stdin="open")
    frozen = [raw.stalled_viewer(place.service, f"{running.path}/stream") for _ in range(10)]
    before = host.resident_mib(gateway)
    with running.stream("?stdin=true") as viewer:
        viewer.keep = False
        viewer.send(b"go\n")
        viewer.until_exit()
    assert viewer.exit["stdout"]["bytes"] == size
    if not viewer.gaps:
        viewer.check()
    assert host.resident_mib(gateway) - before <= 16
    for connection in frozen:
        connection.close()


def test_both_channels_in_one_pipe_come_in_the_order_of_writing(place: Place, shared: str, promised: Promised) -> None:
    promised("merged_output")
    lines = 2000 if place.name == "machine" else 20_000
    script = f"n=0; while [ $n -lt {lines} ]; do echo $n; echo $((n+1)) >&2; n=$((n+2)); done"
    both = place.start(shared, "sh", "-c", script, stderr="stdout")
    assert (both.exit()["code"], both.out("stderr")) == (0, b"")
    assert both.out() == b"".join(b"%d\n" % n for n in range(lines))
    apart = place.start(shared, "sh", "-c", script)
    assert apart.exit()["code"] == 0
    assert apart.out() == b"".join(b"%d\n" % n for n in range(0, lines, 2))


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
