"""Bulkhead's own output: one-line errors, JSON, tables. A program's output never goes through here."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
FAIR = 16  # columns of the terminal: what a wrapped column gets at least, if its cells need them
UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def plain(text: str) -> str:
    """Makes one safe line for a terminal, as a name or a detail may come from an untrusted program."""
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


def message(text: str, end: str = "\n") -> bytes:
    return f"bulkhead: {plain(text)}{end}".encode(errors="backslashreplace")


class ShownOutput:
    """What a program has left on our terminal: whether its last line is still open."""

    def __init__(self) -> None:
        self._is_line_open = False

    def note(self, descriptor: int, data: bytes) -> None:
        if data and os.isatty(descriptor):
            self._is_line_open = not data.endswith(b"\n")

    def own_line(self, message: bytes) -> bytes:
        """The message, on a line of its own where it would continue the program's."""
        begin = b"\r\n" if self._is_line_open and os.isatty(2) else b""
        return begin + message


SHOWN = ShownOutput()


def say(text: str, end: str = "\n") -> None:
    data = SHOWN.own_line(message(text, end))
    with contextlib.suppress(OSError):  # nobody listens
        _write(2, data)
    SHOWN.note(2, data)


def put(text: str) -> None:
    """Writes all of a text to stdout. Raises BrokenPipeError."""
    _write(1, text.encode(errors="backslashreplace") + b"\n")


def put_json(value: Any) -> None:
    put(json.dumps(value, indent=2 if is_terminal() else None, ensure_ascii=False))


def put_line(value: Any) -> None:
    """JSON in one line, for a list that has no end yet."""
    put(json.dumps(value, ensure_ascii=False))


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def short_time(moment: str | None, now: datetime | None = None) -> str:
    """Shows a time of the API in one unit: `in 57m`, `3m ago`. In a pipe it shows the time to the second. `now` is the
    present by default."""
    if not moment:
        return ""
    if not is_terminal() and now is None:
        return moment[:19] + "Z"
    away = (datetime.fromisoformat(moment) - (now or datetime.now(UTC))).total_seconds()
    count, unit = next((abs(away) // size, unit) for unit, size in UNITS if abs(away) >= size or size == 1)
    return f"in {count:g}{unit}" if away > 0 else f"{count:g}{unit} ago"


def size(count: int) -> str:
    """Shows bytes in one unit, with one digit after the point below ten: `58 MiB`, `1.5 KiB`, `17 bytes`."""
    for unit, one in SIZES:
        if count >= one:
            return f"{count / one:.0f} {unit}" if count >= 10 * one else f"{count / one:.1f} {unit}"
    return f"{count} bytes"


def put_table(columns: Sequence[str], rows: Sequence[Sequence[str]], wrapped: Sequence[str] = ()) -> None:
    """Prints a table. In a pipe the columns are plain. On a terminal the columns `wrapped` become as narrow as needed,
    and all others stay in one piece, as an id on two lines could not be copied. Where a wrapped column would break
    words or become too narrow to read, its cells stand below their rows."""
    rows = [[plain(cell) for cell in row] for row in rows]
    if is_terminal():
        _draw(columns, rows, wrapped)
        return
    widths = [max(len(column), *(len(row[i]) for row in rows), 0) for i, column in enumerate(columns)]
    for row in (columns, *rows):
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], wrapped: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = Console()
    widths = _widths(columns, rows, wrapped, terminal.width - len(columns))
    if widths is None:
        (_draw_below if wrapped else _draw_lines)(columns, rows, wrapped)
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    # A table that is too wide all the same is wrapped by the terminal; rich would cut it off.
    Console(width=max(terminal.width, sum(widths) + len(columns))).print(table)


def _widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], wrapped: Sequence[str], room: int
) -> Sequence[int] | None:
    """Of each column: what is left by those in one piece goes to the others, for their longest words first. None where
    it is too little for them."""
    from rich.cells import cell_len

    cells = list(zip(columns, *rows, strict=True))
    whole = [max(map(cell_len, column)) for column in cells]
    words = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    least = [
        min(width, max(word, FAIR)) if name in wrapped else width
        for name, width, word in zip(columns, whole, words, strict=True)
    ]
    if sum(least) <= room:
        return _shared(least, whole, room)
    if any(name not in wrapped for name in columns):
        return None
    return _shared(_shared([cell_len(name) for name in columns], words, room), whole, room)


def _shared(widths: Sequence[int], wanted: Sequence[int], room: int) -> Sequence[int]:
    """Gives what is left of the room to the columns, in proportion to what they lack."""
    lacks = [max(want - width, 0) for want, width in zip(wanted, widths, strict=True)]
    given = min(max(room - sum(widths), 0), sum(lacks))
    return [width + given * lack // (sum(lacks) or 1) for width, lack in zip(widths, lacks, strict=True)]


def _draw_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], _: Sequence[str]) -> None:
    """Each row is one line, which only the terminal wraps. A short row stays short beside a long one."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    terminal = Console()
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        line = " ".join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        terminal.print(Text(line, style="bold" if row is columns else ""), soft_wrap=True)


def _draw_below(columns: Sequence[str], rows: Sequence[Sequence[str]], wrapped: Sequence[str]) -> None:
    """Each row without its `wrapped` cells, and below it these, each with the name of its column."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    terminal = Console()
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    margin = 3 + max(cell_len(name) for name in wrapped)
    for row in (columns, *rows):
        cells = list(zip(columns, row, widths, strict=True))
        line = " ".join(set_cell_size(cell, width) for name, cell, width in cells if name not in wrapped)
        terminal.print(Text(line.rstrip(), style="bold" if row is columns else ""), soft_wrap=True)
        for name, cell, _ in cells:
            if name in wrapped and cell and row is not columns:
                pieces = Text(cell).wrap(terminal, max(terminal.width - margin, FAIR), overflow="fold")
                for number, piece in enumerate(pieces):
                    start = set_cell_size("" if number else f"  {name}", margin)
                    terminal.print(Text(f"{start}{piece.plain.rstrip()}"), soft_wrap=True)
