"""What a program switched on is switched off, however its output was cut into pieces."""

from __future__ import annotations

import pytest

from app.cli.private_modes import PrivateModes
from app.cli.terminal import DetachKeys

PLAIN = b"\x0f\x1b(B\x1b)B\x1b[4l\x1b[20l\x1b]8;;\x1b\\\x1b[m"


@pytest.mark.parametrize(
    ("shown", "undone"),
    [
        (b"plain text \xff", b""),
        (b"\x1b[31mred", PLAIN),
        (b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l" + PLAIN),
        (b"\x1b[?1049h\x1b[?25l\x1b[?25h\x1b[?1049l", PLAIN),
        (b"\x1b[?1;2004;1006h", b"\x1b[?1l\x1b[?2004l\x1b[?1006l" + PLAIN),
        (b"\x0eletters", PLAIN),
        (b"\xc2\x9b?25l", b"\x1b[?25h" + PLAIN),
        (b"\x1b[?1007l\x1b[?1034l", b"\x1b[?1007h\x1b[?1034h" + PLAIN),
        (b"\x1b[?2031;2048h", b"\x1b[?2031l\x1b[?2048l" + PLAIN),
        (b"\x1b[?7l", b"\x1b[?7h" + PLAIN),
        (b"\x1b[?99999h\x1b[?h\x1b[?;h", PLAIN),
        (b"\x1b[2;20r", b"\x1b7\x1b[r\x1b8" + PLAIN),
        (b"\x1b=\x1b[>4;2m\x1b[>1u\x1b[5 q", b"\x1b>\x1b[0 q\x1b[<99u\x1b[>4;0m" + PLAIN),
        (b"\x1b[?1049h\x1b=\x1bc", PLAIN),
        (b"\x1bc\x1b[?1000h", b"\x1b[?1000l" + PLAIN),
    ],
)
def test_what_is_on_is_undone(shown: bytes, undone: bytes) -> None:
    for size in (1, 2, 3, 7, len(shown)):
        modes = PrivateModes()
        for begin in range(0, len(shown), size):
            modes.read(shown[begin : begin + size])
        assert modes.undo() == undone
        assert modes.undo() == b""


@pytest.mark.parametrize(
    "question",
    [
        *(b"\x1b[6n", b"\x1b[c", b"\x1b[>c", b"\x1b]11;?\x07", b"\x1bP+q544e\x1b\\", b"\x1b[21t"),
        *(
            b"\x1b[?2026$p",
            b"\x1b[4$p",
            b"\x1b[>q",
            b"\x1b[>0q",
            b"\x1b[?u",
            b"\x1b]52;c;?\x07",
            b"\x05",
            b"\xc2\x9b6n",
        ),
    ],
)
def test_question_to_the_terminal_is_noticed(question: bytes) -> None:
    modes = PrivateModes()
    modes.read(b"\x1b[1;31mtext\x1b[m")
    assert not modes.asked
    for byte in question:
        modes.read(bytes([byte]))
    assert modes.asked


@pytest.mark.parametrize(
    ("pieces", "passed", "left"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ([b"\x10", b"b"], b"\x10b", False),
        ([b"\x10", b"b", b"\x11"], b"\x10b\x11", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10x\x11"], b"\x11\x10x\x11", False),
    ],
)
def test_keys_that_detach(pieces: list[bytes], passed: bytes, left: bool) -> None:
    keys, found, gone = DetachKeys(), b"", False
    for piece in pieces:
        more, gone = keys.press(piece)
        found += more
    assert (found, gone) == (passed, left)


def test_first_key_alone_is_given_back() -> None:
    keys = DetachKeys()
    assert keys.press(b"\x10") == (b"", False)
    assert (keys.release(), keys.release()) == (b"\x10", b"")
    assert keys.press(b"\x11") == (b"", True)  # however late the second one comes
