"""Builds the scripts that reach a box's files: POSIX sh and programs that busybox, coreutils and toybox all have.

A script reads lines of Bulkhead on its stdin and prints lines. Bytes of any kind go

- in by `feed` of start.sh: a line with the size of a block, the block, an acknowledgement. A size of 0 is the end;
- out by `pump`: a line with length and digest of a piece, the piece in base64, then its end with a status.

At most two pieces of 100 KB are under way, as the server silently drops what is more than 256 KiB behind. The shell
reads the lines byte by byte, and a dd reads a block until it is full. So neither reads a byte too many.
"""

from __future__ import annotations

from app.backends.boxlite.scripts import script
from app.core.files import DEFAULT_MODE

BLOCK_BYTES = 256 * 1024  # of `feed`
PIECE_BYTES = 72 * 1024  # of `pump`
PAGE_BYTES = 4096  # reads begin at a multiple of it: portable dd knows no other
FACTS = "%f %s %Y %i %y"  # busybox has nanoseconds in the last one only


def _on_files(name: str) -> str:
    return script(name, FACTS=FACTS, PIECE_BYTES=PIECE_BYTES, PAGE_BYTES=PAGE_BYTES, DEFAULT_MODE=f"{DEFAULT_MODE:o}")


STAT = _on_files("stat")
OPEN = _on_files("open")
WRITE, CLEAN_WRITE = _on_files("write"), _on_files("write_clean")
TREE = _on_files("tree")
MAKE_DIRECTORY = _on_files("make_directory")
DELETE = _on_files("delete")
UNPACK, CLEAN_UNPACK = _on_files("unpack"), _on_files("unpack_clean")
