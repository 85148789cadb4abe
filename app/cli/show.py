"""What we say ourselves: one-line errors, JSON, tables. A program's own output never passes here."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def plain(text: str) -> str:
    """One line for a terminal: a name or a detail may come from a program that nobody trusts."""
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


def message(text: str, end: str = "\n") -> bytes:
    return f"bulkhead: {plain(text)}{end}".encode(errors="backslashreplace")


def say(text: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # nobody listens
        _write(2, message(text, end))


def put(text: str) -> None:
    """To stdout, all of it. Raises BrokenPipeError."""
    _write(1, text.encode(errors="backslashreplace") + b"\n")


def put_json(value: Any) -> None:
    put(json.dumps(value, indent=2 if sys.stdout is not None and sys.stdout.isatty() else None, ensure_ascii=False))


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def put_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For people on a terminal a rich table, for a pipe plain columns."""
    rows = [[plain(cell) for cell in row] for row in rows]
    if sys.stdout is not None and sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE, header_style="bold")
        for row in rows:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        Console().print(table)
        return
    widths = [max(len(column), *(len(row[i]) for row in rows), 0) for i, column in enumerate(columns)]
    for row in (columns, *rows):
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
