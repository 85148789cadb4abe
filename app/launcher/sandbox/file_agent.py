"""The file agent: a child of the worker that carries out one operation on files for a client.

It is confined as a command is, in control groups of its own below the sandbox's limits. So it can only do what a
command could do, whatever a path leads to, and what it writes is charged to the sandbox. No process outside ever opens
a path of a sandbox or holds a file of it: bytes go through a pipe. An agent carries out one operation and ends.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import os
import stat

from app.launcher.protocol import MAX_PACKET, ProtocolError, Reader, Writer
from app.launcher.protocol.files import (
    ABSENT,
    COMMIT,
    DEFAULT_MODE,
    DELETE,
    DIRECTORY,
    DONE,
    FAILED,
    FOUND,
    GO,
    KEEP_MODE,
    LIST,
    LONGEST,
    MAKE_DIRECTORY,
    MEASURE,
    NODE,
    NOTHING,
    PACK,
    READ,
    SEND,
    STAT,
    THE_SAME,
    UNKNOWN_KIND,
    UNPACK,
    USED,
    WRITE,
    FileRecord,
)
from app.launcher.sandbox import packing, tree
from app.launcher.sandbox.tree import Obstacle, node_of

HOME = b"/workspace"
_PIECE = 1024 * 1024


class GivenUp(Exception):
    """The gateway has disconnected, so the operation is undone."""


def become_agent(control: int, data: int, body: bytes) -> None:
    """Turns a child of the worker into a file agent. Never returns."""
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.setsid()
        keep_only(control, data)
        FileAgent(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control), data).carry_out(Reader(body))
        os._exit(0)
    finally:
        os._exit(1)


def keep_only(*descriptors: int) -> None:
    """Closes everything of the worker: its sockets, and the descriptors that lead into other control groups."""
    begin = 3
    for descriptor in sorted(descriptors):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, 1 << 16)


def _without_our_names(where: object, path: bytes) -> bytes:
    """The place of an error, in names that the client knows."""
    if not isinstance(where, bytes):
        return path
    parts = where.split(b"/")
    if tree.is_ours(parts[-1]):
        return path
    return b"/".join(part for part in parts if not tree.is_ours(part))


def _mode_of(asked: int, replaced: FileRecord | None) -> int:
    if asked != KEEP_MODE:
        return asked
    return DEFAULT_MODE if replaced is None else replaced.mode


class FileAgent:
    def __init__(self, control: _socket.socket, data: int) -> None:
        self._control, self._data = control, data

    # --- talking to the gateway

    def _tell(self, record: Writer) -> None:
        self._control.send(bytes(record.data))

    def _tell_node(self, node: FileRecord | None) -> None:
        if node is None:
            return self._tell(Writer(ABSENT))
        record = Writer(FOUND)
        record.data += NODE.pack(*node.fields())
        return self._tell(record)

    def _hear(self, expected: int) -> Reader:
        source = Reader(self._control.recv(MAX_PACKET) or b"\0")
        if source.u8() != expected:
            raise GivenUp
        return source

    def carry_out(self, request: Reader) -> None:
        operation, path = request.u8(), request.blob(LONGEST)
        try:
            os.chdir(HOME)
            self._do(operation, path, request)
        except OSError as error:
            kind = error.kind if isinstance(error, Obstacle) else UNKNOWN_KIND
            where = _without_our_names(error.filename, path)
            self._tell(Writer(FAILED).u32(error.errno or errno.EIO).u8(kind).blob(where[:LONGEST]))
        except (GivenUp, ProtocolError):
            return

    def _do(self, operation: int, path: bytes, request: Reader) -> None:
        if operation == STAT:
            self._tell_node(node_of(os.stat(path)))
        elif operation == READ:
            self._read(path)
        elif operation == WRITE:
            self._write(path, request.u32())
        elif operation == LIST:
            tree.list_entries(self._data, path, request.blob(LONGEST), request.u32())
        elif operation == MAKE_DIRECTORY:
            self._tell(Writer(DONE).u8(bool(tree.make_directories(path))))
        elif operation == DELETE:
            tree.delete(path, recursive=bool(request.u8()))
            self._tell(Writer(DONE).u8(0))
        elif operation == MEASURE:
            disk, ours = os.statvfs(path), os.stat("/proc/meminfo")
            used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
            own = ours.st_blocks * 512 if ours.st_dev == os.stat(path).st_dev else 0
            self._tell(Writer(USED).u64(used - own))
        elif operation == PACK:
            packing.require_readable(path)
            self._tell(Writer(DONE).u8(0))
            self._hear(GO)
            packing.pack(self._data, path)
        elif operation == UNPACK:
            packing.Unpacking(self._data, path, tree.name_of_ours()).run()
            self._tell(Writer(DONE).u8(0))

    # --- one file

    def _read(self, path: bytes) -> None:
        """Looked at before it is opened, as to open a device may do something; and after, as it may be another now."""
        tree.require_file(os.stat(path), path)
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        found = os.fstat(file)
        tree.require_file(found, path)
        self._tell_node(node_of(found))
        request = self._hear(SEND)
        begin, left = request.u64(), request.u64()
        while left and (sent := os.sendfile(self._data, file, begin, min(left, _PIECE))):
            begin, left = begin + sent, left - sent

    def _write(self, path: bytes, mode: int) -> None:
        """Beside its place under a name of its own, then renamed: at no moment is there half a file."""
        real = tree.resolved(path)  # through a link, as a command's write would go
        self._tell_node(self._at(real, path))
        self._hear(GO)
        made = tree.make_directories(os.path.dirname(real))
        temporary = os.path.dirname(real) + b"/" + tree.name_of_ours()
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            tree.fill(file, self._data)
            found = self._at(real, path)
            os.fchmod(file, _mode_of(mode, found) & 0o777)
            os.close(file)
            self._tell_node(found)
            request = self._hear(COMMIT)
            is_new = self._put_in_place(temporary, real, path, request)
            made.clear()
        finally:
            tree.forget(temporary)
            for directory in reversed(made):
                tree.forget_directory(directory)
        self._tell(Writer(DONE).u8(is_new))

    def _at(self, real: bytes, path: bytes) -> FileRecord | None:
        if path.endswith(b"/"):
            raise Obstacle(errno.EISDIR, path, DIRECTORY)
        try:
            found = os.lstat(real)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(found.st_mode):  # somebody has put it there since `resolved` looked: a rename would replace it
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        tree.require_file(found, path)
        return node_of(found)

    def _put_in_place(self, temporary: bytes, real: bytes, path: bytes, request: Reader) -> bool:
        expectation = request.u8()
        if expectation == NOTHING:
            os.link(temporary, real)  # fails where there is something, which a rename would replace
            return True
        now = self._at(real, path)
        if expectation == THE_SAME and (now is None or now.fields() != FileRecord.read(request).fields()):
            raise OSError(errno.ESTALE, "it has changed", path)
        os.rename(temporary, real)
        return now is None
