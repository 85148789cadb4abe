"""What goes between the gateway and a file agent: requests and records on its control socket, entries on its pipe.

The agent is as hostile as everything from inside a sandbox: decoding never trusts it.

::

    gateway -> launcher -> worker   one operation, its path and what belongs to it
    agent -> gateway                FOUND node | ABSENT      what is at the path
                                    DONE flag                it is carried out
                                    USED bytes               MEASURE: of the disk on which the path lies
                                    FAILED errno kind path   it is not; `kind` is what stands in the way
    gateway -> agent                SEND begin size          READ: these bytes into the pipe
                                    GO                       WRITE, PACK: begin
                                    COMMIT expectation       WRITE: let it take effect
"""

from __future__ import annotations

import struct

from app.launcher.protocol import ProtocolError, Reader, Writer

STAT, READ, WRITE, LIST, MAKE_DIRECTORY, DELETE, PACK, UNPACK, MEASURE = range(1, 10)
FOUND, ABSENT, DONE, FAILED, USED = range(32, 37)
SEND, GO, COMMIT = range(64, 67)
ANYTHING, NOTHING, THE_SAME = range(3)  # what COMMIT expects at the path

# The order is the code on the wire.
KINDS = ("file", "directory", "symlink", "fifo", "socket", "character_device", "block_device", "hard_link")
FILE, DIRECTORY, SYMLINK, HARD_LINK = 0, 1, 2, 7
UNKNOWN_KIND = 255
END = 254  # closes a sequence of entries; its size is a number for the reader

DEFAULT_MODE = 0o644
KEEP_MODE = 0xFFFFFFFF  # WRITE: the mode of the file that is replaced, and DEFAULT_MODE for a new one
LONGEST = 4095  # bytes of a path, as the kernel's
NODE = struct.Struct("<BQIqQ")  # kind, size, mode, mtime in ns, inode
HEAD = struct.Struct("<BQIqQHH")  # a NODE, then the lengths of name and target, which follow


class FileRecord:
    """The facts of what is at a path, as numbers. `kind` is an index into KINDS."""

    __slots__ = ("inode", "kind", "mode", "modified_ns", "size")

    def __init__(self, kind: int, size: int, mode: int, modified_ns: int, inode: int) -> None:
        self.kind, self.size, self.mode = kind, size, mode
        self.modified_ns, self.inode = modified_ns, inode

    def fields(self) -> tuple[int, int, int, int, int]:
        return self.kind, self.size, self.mode, self.modified_ns, self.inode

    @classmethod
    def read(cls, source: Reader) -> FileRecord:
        return checked(*NODE.unpack(source.take(NODE.size)))


def checked(kind: int, size: int, mode: int, modified_ns: int, inode: int) -> FileRecord:
    """Raises ProtocolError for an unknown kind."""
    if kind >= len(KINDS):
        raise ProtocolError("an unknown kind of file")
    return FileRecord(kind, size, mode, modified_ns, inode)


def pack_head(node: FileRecord, name: bytes, target: bytes = b"") -> bytes:
    return HEAD.pack(*node.fields(), len(name), len(target)) + name + target


def end_of_entries(number: int = 0) -> bytes:
    return HEAD.pack(END, number, 0, 0, 0, 0, 0)


def request(operation: int, path: bytes) -> Writer:
    """Begins a request. The operation's own fields follow."""
    return Writer(operation).blob(path)
