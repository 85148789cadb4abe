"""stdin over the stream: in order, with an end, one holder, and back pressure all the way to the client."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus

from tests.kernel import host, raw
from tests.kernel.talk import Running, Viewer, start
from tests.service import Service

MIB = 1 << 20


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two viewers per execution."""
    with Service(tmp_path_factory.mktemp("tight"), {"BULKHEAD_CAPACITY__VIEWERS": "2"}) as service:
        yield service


def refused(running: Running, query: str) -> int:
    with pytest.raises(InvalidStatus) as error, running.stream(query):
        pass
    return int(error.value.response.status_code)


def test_five_megabytes_pass_through_cat_intact(service: Service, sandbox: str) -> None:
    data = os.urandom(5 * MIB)
    running = start(service, sandbox, "cat", stdin="open")

    def feed(viewer: Viewer) -> None:
        at = 0
        for size in (1, 65_535, 65_536, 65_537, 300_000, *[MIB] * 10):
            viewer.send(data[at : at + size])
            at += size
            if at >= len(data):
                break
        viewer.say(type="stdin_eof")

    with running.stream("?stdin=true") as viewer:
        sender = threading.Thread(target=feed, args=(viewer,))
        sender.start()
        frame = viewer.until_exit()
        sender.join()
    assert bytes(viewer.out["stdout"]) == data
    assert frame["stdout"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert frame["exit"]["code"] == 0


def test_end_of_file_ends_a_reader(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "sh", "-c", "cat; echo the end", stdin="open")
    with running.stream("?stdin=true") as viewer:
        viewer.say(type="stdin_eof")
        assert viewer.until_exit()["exit"]["code"] == 0
    assert viewer.out["stdout"] == b"the end\n"


def test_a_program_that_closes_its_stdin_early_harms_nobody(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "sh", "-c", "exec 0<&-; echo closed; while :; do sleep 1000; done", stdin="open")
    with running.stream("?stdin=true") as viewer:
        viewer.until(b"closed")
        for _ in range(5):
            viewer.send(bytes(MIB // 2))
        viewer.say(type="stdin_eof")
        viewer.send(b"after the end")
        while not viewer.problems:
            assert viewer.step()
        assert viewer.problems[0]["type"] == "/problems/wrong_state"
        viewer.say(type="signal", signal="SIGTERM")
        assert viewer.until_exit()["exit"]["signal"] == "SIGTERM"
    assert len(viewer.problems) == 1


def test_a_second_holder_is_refused_and_a_take_over_closes_the_first(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "cat", stdin="open")
    with running.stream("?stdin=true") as first:
        first.send(b"one ")
        first.until(b"one ")
        assert refused(running, "?stdin=true") == 409
        with running.stream("?stdin=take&stdout_offset=4") as second:
            assert first.until_closed() == 4001
            second.send(b"two")
            second.until(b"two")
            assert second.start["stdin_bytes"] == 4
            second.say(type="stdin_eof")
            assert second.until_exit()["stdout"]["bytes"] == 7
    assert refused(running, "?stdin=true") == 409


def test_stdin_from_a_stream_that_does_not_hold_it_closes_that_stream(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "cat", stdin="open")
    with running.stream() as viewer:
        viewer.send(b"mine")
        assert viewer.until_closed() == 1008
    assert viewer.problems[0]["type"] == "/problems/conflict"
    assert running.show()["state"] == "running"


def test_a_program_that_does_not_read_stops_the_client_at_a_mebibyte(service: Service, sandbox: str) -> None:
    """Then it reads, and everything is there."""
    script = (
        "import signal, sys, hashlib\nsignal.pthread_sigmask(signal.SIG_BLOCK, [10])\nprint('ready', flush=True)\n"
        "signal.sigwait([10])\nprint(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    )
    running = start(service, sandbox, "python3", "-c", script, stdin="open")
    gateway, piece, count = service.children()["gateway"], os.urandom(32 * 1024), 1024

    def feed(viewer: Viewer) -> None:
        for _ in range(count):
            viewer.send(piece)
        viewer.say(type="stdin_eof")

    def taken() -> int:
        with running.stream() as other:
            while not other.start:
                other.step()
        return int(other.start["stdin_bytes"])

    with running.stream("?stdin=true") as viewer:
        viewer.until(b"ready")
        before = host.resident_mib(gateway)
        sender = threading.Thread(target=feed, args=(viewer,))
        sender.start()
        host.until(lambda: taken() >= MIB, "a mebibyte is taken")
        for _ in range(20):
            assert taken() <= MIB + 64 * 1024 + 2 * len(piece), "the pipe's 64 KiB, the mebibyte, one frame"
        assert host.resident_mib(gateway) - before <= 8
        assert sender.is_alive(), "the client has to wait"
        assert running.signal("SIGUSR1") == 204, "signals do not queue behind stdin"
        viewer.until_exit()
        sender.join()
    digest = hashlib.sha256(piece * count).hexdigest().encode()
    assert viewer.out["stdout"] == b"ready\n" + digest + b"\n"


@pytest.mark.parametrize("leave", ["closes", "resets", "resets while its stdin waits"])
def test_a_client_that_leaves_is_noticed_while_the_program_is_silent(tight: Service, leave: str) -> None:
    sandbox = tight.create()
    running = start(tight, sandbox, "sleep", "1000", stdin="open")
    with running.stream():
        other = raw.stalled_viewer(tight, f"{running.path}/stream?stdin=true")
        assert refused(running, "") == 429
        if leave == "resets while its stdin waits":  # the program does not read: nor is this socket read
            send_until_full(other)
        if leave == "closes":
            other.close()
        else:
            raw.reset(other)

        def freed() -> bool:
            try:
                with running.stream("?stdin=true"):
                    return True
            except InvalidStatus as error:
                assert error.response.status_code in (409, 429)
                return False

        host.until(freed, "the place of the viewer and of the holder of stdin is free")
    assert tight.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def send_until_full(connection: socket.socket) -> None:
    """Masked binary frames of 64 KiB, until nothing more is taken for a while."""
    frame = b"\x82\xff" + (65_536).to_bytes(8, "big") + bytes(4) + bytes(65_536)
    connection.settimeout(1)
    with pytest.raises(TimeoutError):
        for _ in range(4096):
            connection.sendall(frame)
