"""What the health check of a launcher says of one that answers badly. `tests/kernel/test_standalone.py` has real
ones."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.launcher.protocol import HELLO, OK, REFUSED, REPLY, VERSION, Writer
from app.serving import health_checks
from app.serving.health_checks import check_launcher
from tests.boxlite.rig import descriptors


def facts(*lines: bytes, status: int = OK, request: int = 1) -> bytes:
    return bytes(Writer(REPLY).u32(request).u8(status).many(list(lines)).data)


PROTOCOL = f"protocol={VERSION}".encode()
ANSWERS = {
    "healthy": (facts(PROTOCOL, b"missing="), 0, ""),
    "missing": (
        facts(PROTOCOL, b"missing=landlock"),
        1,
        "this host lacks landlock; `bulkhead probe` says how to get it",
    ),
    "version": (facts(b"protocol=0"), 1, "another version"),
    "refused": (facts(PROTOCOL, status=REFUSED), 1, "another version"),
    "number": (facts(PROTOCOL, request=2), 1, "another version"),
    "no fact": (facts(b"protocol"), 1, "another version"),
    "no text": (facts(b"\xff=1"), 1, "another version"),
    "cut": (facts(PROTOCOL)[:-1], 1, "another version"),
    "garbage": (b"x", 1, "another version"),
    "hangs up": (b"", 1, "does not answer: it hung up"),
}


@contextmanager
def launcher(path: Path, answer: bytes | None) -> Iterator[list[bytes]]:
    """Answers one request, with a descriptor beside it. Nothing: it hangs up. None: it never answers."""
    asked: list[bytes] = []
    over = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, Path(os.devnull).open() as null:
            asked.append(connection.recv(100))
            if answer:
                socket.send_fds(connection, [answer], [null.fileno()])
            elif answer is None:
                over.wait(60)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield asked
        finally:
            over.set()
            serving.join()


@pytest.mark.parametrize(("answer", "status", "said"), ANSWERS.values(), ids=ANSWERS)
def test_check_judges_the_answer_and_keeps_no_descriptor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, status: int, said: str
) -> None:
    before = descriptors()
    with launcher(tmp_path / "socket", answer) as asked:
        assert check_launcher(tmp_path / "socket") == status
    assert asked == [bytes(Writer(HELLO).u32(1).data)]
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == status
    assert descriptors() <= before


def test_check_of_a_launcher_that_never_answers_gives_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_checks, "_LAUNCHER_SECONDS", 0.05)
    with launcher(tmp_path / "socket", None):
        assert check_launcher(tmp_path / "socket") == 1
    assert capsys.readouterr().err == "bulkhead: the launcher does not answer: timed out\n"


def test_check_without_a_socket_names_the_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BULKHEAD_PROCESS__LAUNCHER_SOCKET", raising=False)
    assert check_launcher() == 1
    assert "BULKHEAD_PROCESS__LAUNCHER_SOCKET" in capsys.readouterr().err
