"""The messages on the sockets, for both ends: gateway <-> launcher, launcher -> worker, worker <-> gateway.

They are little-endian binary records in SOCK_SEQPACKET packets. Decoding never trusts the sender: a record that is too
short, too long or out of range is a ProtocolError. Descriptors travel beside a packet (SCM_RIGHTS), in the order named
here.
"""

from __future__ import annotations

import struct

VERSION = 6
# SOCK_SEQPACKET takes a packet only if it fits the sender's buffer (212,992 bytes by default, shared with the
# kernel's own bookkeeping); a larger command travels in a memfd, which the worker reads once.
MAX_PACKET = 64 * 1024
MAX_COMMAND = 4 * 1024 * 1024

# gateway -> launcher
HELLO, CREATE, EXECUTE, FINISH, KILL, DESTROY, AGENT, PAUSE, RESUME, USAGE, TERMINAL, LISTEN = range(1, 13)
# launcher -> gateway
REPLY, LOST, NETWORK = 16, 17, 18
OK, REFUSED = 0, 1
# launcher -> worker
IDENTITY, GO, RUN, RUN_AGENT, HOLD, TERMINALS, DISK, GROUPS = 31, 32, 33, 34, 35, 36, 37, 38
# worker -> launcher
NETWORK_UP, READY, STEP_FAILED, HELD, LISTENERS = 47, 48, 49, 50, 51
# For a plan with ports, LISTENERS and the answer to CREATE come with descriptors: the UDP socket on RESOLVER_ADDRESS,
# then a listening TCP socket for each port, in the order of the plan.
# LISTEN names a sandbox with ports and new ones, rising, and comes with the listening sockets that end. The answer has
# those of the new ports.
MOST_PORTS = 16
BACKLOG = 128  # connections of all listeners of a sandbox together that nobody has accepted yet
RESOLVER_ADDRESS = ("127.0.0.53", 53)
MOST_CERTIFICATE = 4096  # bytes of the certificate of a sandbox's own authority
# Of the subject of each such certificate, as `openssl x509 -subject_hash` prints it: a part of a file's name.
AUTHORITY_HASH = "47485c97"
# The answer to TERMINAL comes with the controlling side of a new terminal of the sandbox. A command whose stdin is the
# other side leads the terminal's session.
# With EXECUTE and RUN come the command's three streams (and a memfd), with the other two an agent's control and pipe.
STREAMS = {EXECUTE: 3, RUN: 3, AGENT: 2, RUN_AGENT: 2}
# worker -> gateway and back: fixed records
STARTED, START_FAILED, EXITED = 64, 65, 66
SIGNAL = 80

RECORD = struct.Struct("<BIii")  # kind, execution number, two values
# The values of START_FAILED: errno, and which step it was.
STEP_EXEC, STEP_WORKDIR, STEP_CGROUP, STEP_LIMITS = 0, 1, 2, 3

# Of a plan.
FLAG_LOOPBACK_TCP, FLAG_DISK = 1, 2


class ProtocolError(Exception):
    """The other side sent something that it must not send."""


class Writer:
    """Builds one record."""

    __slots__ = ("data",)

    def __init__(self, kind: int) -> None:
        self.data = bytearray((kind,))

    def u8(self, value: int) -> Writer:
        self.data += struct.pack("<B", value)
        return self

    def u32(self, value: int) -> Writer:
        self.data += struct.pack("<I", value)
        return self

    def i32(self, value: int) -> Writer:
        self.data += struct.pack("<i", value)
        return self

    def u64(self, value: int) -> Writer:
        self.data += struct.pack("<Q", value)
        return self

    def blob(self, value: bytes) -> Writer:
        self.data += struct.pack("<I", len(value))
        self.data += value
        return self

    def text(self, value: str) -> Writer:
        return self.blob(value.encode())

    def many(self, values: list[bytes]) -> Writer:
        self.u32(len(values))
        for value in values:
            self.blob(value)
        return self


class Reader:
    """Parses one record. Every method raises ProtocolError when the record is shorter than it claims."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ProtocolError("a record ends early")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def i32(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def blob(self, most: int = MAX_PACKET) -> bytes:
        size = self.u32()
        if size > most:
            raise ProtocolError("a field is longer than it may be")
        return self.take(size)

    def text(self, most: int = 4096) -> str:
        try:
            return self.blob(most).decode()
        except UnicodeDecodeError:
            raise ProtocolError("a text is not UTF-8") from None

    def many(self, most: int, longest: int = MAX_PACKET) -> list[bytes]:
        count = self.u32()
        if count > most:
            raise ProtocolError("a list is longer than it may be")
        return [self.blob(longest) for _ in range(count)]

    def rest(self) -> bytes:
        piece = self._data[self._at :]
        self._at = len(self._data)
        return piece

    def end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError("a record goes on after its end")


class CreatePlan:
    """CREATE: the order for a sandbox. It has names, numbers and narrower paths only, and one descriptor, the worker's
    end of the owner socket.

    `on_disk`: files are on a file system of its own on the operator's disk, with `disk_bytes` of usable room. Else they
    are in memory. `ports`: the TCP ports, rising, on which every address is the sandbox's own and somebody outside
    accepts. Empty for a sandbox without a network. `authority`: the certificate, in PEM, of an authority that programs
    in the sandbox trust in addition to the host's. Empty for none.
    """

    __slots__ = (
        "authority", "cpu_millis", "disk_bytes", "filter_name", "loopback_tcp", "memory_bytes", "on_disk", "ports",
        "processes", "read_only", "read_write", "sandbox_id", "template",
    )  # fmt: skip

    def __init__(
        self,
        sandbox_id: str,
        template: str,
        filter_name: str,
        cpu_millis: int,
        memory_bytes: int,
        disk_bytes: int,
        processes: int,
        loopback_tcp: bool,
        read_only: list[str],
        read_write: list[str],
        on_disk: bool = False,
        ports: list[int] | None = None,
        authority: bytes = b"",
    ) -> None:
        self.sandbox_id, self.template, self.filter_name = sandbox_id, template, filter_name
        self.cpu_millis, self.memory_bytes, self.disk_bytes = cpu_millis, memory_bytes, disk_bytes
        self.processes, self.loopback_tcp = processes, loopback_tcp
        self.read_only, self.read_write, self.on_disk, self.ports = read_only, read_write, on_disk, ports or []
        self.authority = authority

    def write(self, into: Writer) -> Writer:
        into.text(self.sandbox_id).text(self.template).text(self.filter_name)
        into.u32(self.cpu_millis).u64(self.memory_bytes).u64(self.disk_bytes).u32(self.processes)
        into.u8(FLAG_LOOPBACK_TCP * self.loopback_tcp | FLAG_DISK * self.on_disk)
        into.many([path.encode() for path in self.read_only])
        into.many([path.encode() for path in self.read_write]).u8(len(self.ports))
        for port in self.ports:
            into.u32(port)
        return into.blob(self.authority)

    @classmethod
    def read(cls, source: Reader) -> CreatePlan:
        sandbox_id, template, filter_name = source.text(64), source.text(64), source.text(64)
        cpu_millis, memory, disk, processes = source.u32(), source.u64(), source.u64(), source.u32()
        flags = source.u8()
        if flags & ~(FLAG_LOOPBACK_TCP | FLAG_DISK):
            raise ProtocolError("an unknown flag")
        read_only = [_path(raw) for raw in source.many(256, 4096)]
        read_write = [_path(raw) for raw in source.many(256, 4096)]
        ports = [source.u32() for _ in range(source.u8())]
        return cls(
            sandbox_id, template, filter_name, cpu_millis, memory, disk, processes,
            bool(flags & FLAG_LOOPBACK_TCP), read_only, read_write, bool(flags & FLAG_DISK), ports,
            source.blob(MOST_CERTIFICATE),
        )  # fmt: skip


class ExecutionPlan:
    """A part of EXECUTE and RUN: limits of one execution, below those of its sandbox. 0 is none of its own."""

    __slots__ = ("cpu_ns", "file_bytes", "memory_bytes", "open_files", "stack_bytes")

    def __init__(
        self, cpu_ns: int = 0, memory_bytes: int = 0, stack_bytes: int = 0, open_files: int = 0, file_bytes: int = 0
    ) -> None:
        self.cpu_ns, self.memory_bytes = cpu_ns, memory_bytes
        self.stack_bytes, self.open_files, self.file_bytes = stack_bytes, open_files, file_bytes

    def rlimits(self) -> list[tuple[int, int]]:
        """Kind and value of those that are a process's own; the numbers are those of linux/resource.h."""
        named = ((1, self.file_bytes), (3, self.stack_bytes), (7, self.open_files))
        return [(kind, value) for kind, value in named if value]

    def write(self, into: Writer) -> Writer:
        """One byte where there are none."""
        values = (self.cpu_ns, self.memory_bytes, self.stack_bytes, self.open_files, self.file_bytes)
        if not any(values):
            return into.u8(0)
        into.u8(1)
        for value in values:
            into.u64(value)
        return into

    @classmethod
    def read(cls, source: Reader) -> ExecutionPlan:
        there = source.u8()
        if there > 1:
            raise ProtocolError("not the limits of an execution")
        return cls(*(source.u64() for _ in range(5))) if there else cls()


def _path(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ProtocolError("a path is not UTF-8") from None


def pack_command(argv: list[bytes], env: list[bytes], workdir: bytes) -> bytes:
    """The body of EXECUTE and RUN: argv, NAME=VALUE strings, the directory to start in."""
    return bytes(Writer(0).many(argv).many(env).blob(workdir).data)


def unpack_command(body: bytes) -> tuple[list[bytes], list[bytes], bytes]:
    source = Reader(body)
    if source.u8() != 0:
        raise ProtocolError("not a command")
    argv, env, workdir = source.many(1 << 17, MAX_COMMAND), source.many(1 << 16, MAX_COMMAND), source.blob(4096)
    source.end()
    return argv, env, workdir
