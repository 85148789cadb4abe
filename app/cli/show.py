"""Bulkhead's own output: one-line errors, JSON, tables. A program's output never goes through here."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def plain(text: str) -> str:
    """Makes one safe line for a terminal, as a name or a detail may come from an untrusted program."""
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


def message(text: str, end: str = "\n") -> bytes:
    return f"bulkhead: {plain(text)}{end}".encode(errors="backslashreplace")


def say(text: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # nobody listens
        _write(2, message(text, end))


def put(text: str) -> None:
    """Writes all of a text to stdout. Raises BrokenPipeError."""
    _write(1, text.encode(errors="backslashreplace") + b"\n")


def put_json(value: Any) -> None:
    put(json.dumps(value, indent=2 if is_terminal() else None, ensure_ascii=False))


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


def put_table(columns: Sequence[str], rows: Sequence[Sequence[str]], wrapped: Sequence[str] = ()) -> None:
    """Prints a table. In a pipe the columns are plain. On a terminal the columns `wrapped` become as narrow as needed,
    and all others stay in one piece, as an id on two lines could not be copied."""
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
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    # A table that is too wide all the same is wrapped by the terminal; rich would cut it off.
    Console(width=max(terminal.width, sum(widths) + len(columns))).print(table)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], wrapped: Sequence[str], room: int) -> Sequence[int]:
    """Of each column: what is left by those in one piece goes to the others, for their longest words first."""
    from rich.cells import cell_len

    cells = list(zip(columns, *rows, strict=True))
    whole = [max(map(cell_len, column)) for column in cells]
    words = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    widths = [cell_len(name) if name in wrapped else width for name, width in zip(columns, whole, strict=True)]
    if sum(widths) > room:  # too wide in any case, and then at least readable
        return [max(width, word) for width, word in zip(widths, words, strict=True)]
    for wanted in (words, whole):
        lacks = [max(want - width, 0) for want, width in zip(wanted, widths, strict=True)]
        given = min(max(room - sum(widths), 0), sum(lacks))
        widths = [width + given * lack // (sum(lacks) or 1) for width, lack in zip(widths, lacks, strict=True)]
    return widths
