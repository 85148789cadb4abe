"""What a program has switched on in the terminal that shows it, and how to switch it off again.

A program restores a terminal itself, unless it is killed or left. Sequences: xterm's "Control Sequences" (ctlseqs).
"""

from __future__ import annotations

import re

# DEC private modes -> whether a terminal has them on at first: cursor keys, columns, reverse video, origin, wrapping,
# mouse, cursor, other screens, keypad, margins, focus, pasting, synchronized output, reports of colours and sizes, the
# wheel as arrow keys, Meta as the eighth bit.
_AT_FIRST = dict.fromkeys(
    [
        *(1, 3, 5, 6, 9, 47, 66, 69, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049),
        *(2004, 2026, 2031, 2048),
    ],
    False,
) | {7: True, 25: True, 1007: True, 1034: True}
_SCREENS = (1049, 1047, 47)  # the last to go: leaving one puts the cursor where it was before
_MODES = re.compile(rb"\x1b\[\?([0-9;]{1,64})([hl])")
# What switches something else on, and what undoes it.
_OTHERS = (
    (re.compile(rb"\x1b="), b"\x1b>"),  # keypad
    (re.compile(rb"\x1b\[[0-9]*;?[0-9]+r"), b"\x1b7\x1b[r\x1b8"),  # margins; undoing moves the cursor
    (re.compile(rb"\x1b\[>4;[0-9]m"), b"\x1b[>4;0m"),  # keys that are told in another way
    (re.compile(rb"\x1b\[[>=][0-9;]*u"), b"\x1b[<99u"),  # all that were pushed
    (re.compile(rb"\x1b\[[1-9] q"), b"\x1b[0 q"),  # shape of the cursor
)
# The terminal answers these, as if it was typed: what it is, modes, the keyboard, colours, the clipboard
# (OSC 52). ENQ is looked for beside.
_QUESTION = re.compile(
    rb"\x1b\[[0-9;?>=]*[cntx]|\x1b\[[0-9;?]*\$p|\x1b\[>[0-9]*q|\x1b\[\?u|\x1b\][0-9;]*(?:[a-z0-9]*;)?\?|\x1bP"
)
# Letters in both sets, inserting and line ends as usual, no link, no colours.
_PLAIN = b"\x0f\x1b(B\x1b)B\x1b[4l\x1b[20l\x1b]8;;\x1b\\\x1b[m"
_EIGHT_BITS, _SEVEN_BITS = b"\xc2\x9b", b"\x1b["  # two forms of CSI
_ENQUIRY, _SHIFT_OUT = b"\x05", b"\x0e"
_RESET = b"\x1bc"
_LONGEST = 80  # bytes of a sequence


class PrivateModes:
    def __init__(self) -> None:
        self.asked = False  # something that the terminal answers
        self._seen = False  # any sequence at all
        self._on: dict[int, bool] = {}
        self._others: set[bytes] = set()
        self._rest = b""

    def read(self, data: bytes) -> None:
        """The next piece of what is shown."""
        data = (self._rest + data).replace(_EIGHT_BITS, _SEVEN_BITS)
        self._rest = _EIGHT_BITS[:1] if data.endswith(_EIGHT_BITS[:1]) else b""
        self.asked = self.asked or _ENQUIRY in data
        self._seen = self._seen or _SHIFT_OUT in data
        if b"\x1b" not in data:
            return
        self._seen = True
        last = data.rfind(b"\x1b")
        if len(data) - last < _LONGEST:
            self._rest = data[last:]  # it may go on in the next piece; to read it twice does no harm
        if _RESET in data:
            self._on.clear()
            self._others.clear()
            data = data[data.rfind(_RESET) :]
        for numbers, letter in _MODES.findall(data):
            for number in numbers.split(b";"):
                if number.isdigit() and int(number) in _AT_FIRST:
                    self._on[int(number)] = letter == b"h"
        self._others |= {undo for pattern, undo in _OTHERS if pattern.search(data)}
        self.asked = self.asked or _QUESTION.search(data) is not None

    def undo(self) -> bytes:
        """What gives the terminal back. Afterwards it counts as untouched."""
        if not self._seen:
            return b""
        self._seen = False
        changed = [number for number, on in self._on.items() if on != _AT_FIRST[number]]
        changed.sort(key=lambda number: number in _SCREENS)
        modes = b"".join(b"\x1b[?%d%c" % (number, b"lh"[_AT_FIRST[number]]) for number in changed)
        others = b"".join(sorted(self._others))
        self._on.clear()
        self._others.clear()
        return others + modes + _PLAIN
