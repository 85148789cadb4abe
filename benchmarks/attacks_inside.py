"""What one sandbox does to the machine: Python programs that run in it, and how many of them.

Memory groups that stay after their sandbox show in `tests/kernel/test_dead_groups.py`: they cost nobody time.
"""

from __future__ import annotations

_FORKS = """
import os
while True:
    pid = os.fork()
    if not pid: os._exit(0)
    os.waitpid(pid, 0)
"""
_EXECS = """
import os
while True: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
"""
_ORPHANS = """
import os
while True:
    pid = os.fork()
    if not pid:
        if not os.fork(): os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
"""
_SIGNALS = """
import os, signal
while True:
    try: os.kill(1, signal.SIGCHLD)
    except OSError: pass
"""
_FLUSHES = """
import os
file = os.open("/usr/bin/env", os.O_RDONLY)
while True: os.fsync(file)
"""
_ACLS = """
import os, struct
entries = [(1, 7, 0xffffffff)] + [(2, 7, n) for n in range(1, 8000)]
entries += [(4, 7, 0xffffffff), (16, 7, 0xffffffff), (32, 7, 0xffffffff)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
for number in range(4000):
    open(f"f{number}", "w").close()
    try: os.setxattr(f"f{number}", "system.posix_acl_access", acl)
    except OSError: pass
while True: pass
"""
_MULTICAST = """
import socket, struct
MCAST_JOIN_GROUP, MCAST_MSFILTER, INCLUDE = 42, 48, 1
def address(text): return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, text), 0)
group = address("ff05::1").ljust(128, b"\\0")
sources = b"".join(address(f"fd00::{number:x}").ljust(128, b"\\0") for number in range(1, 1001))
held = []
for number in range(900):
    try:
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        held.append(one)
        one.setsockopt(socket.IPPROTO_IPV6, MCAST_JOIN_GROUP, struct.pack("=II", 1, 0) + group)
        filter_ = struct.pack("=II", 1, 0) + group + struct.pack("=II", INCLUDE, 1000) + sources
        one.setsockopt(socket.IPPROTO_IPV6, MCAST_MSFILTER, filter_)
    except OSError: pass
while True: pass
"""
_SEGMENT_KEYS = """
import socket, struct
TCP_MD5SIG = 14
held = []
for number in range(300):
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.append(one)
    for peer in range(700):
        try: one.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, struct.pack("=HHI120xBBHI80s", socket.AF_INET, 0,
            socket.htonl(0x0a000001 + peer), 0, 0, 16, 0, bytes(80)))
        except OSError: break
while True: pass
"""
_COUNTED = """
import ctypes, os
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0: pass
timer = ctypes.c_void_p()
while libc.timer_create(1, None, ctypes.byref(timer)) == 0: pass
while True: pass
"""
_KILLED_FOR_MEMORY = """
import os
while True:
    pid = os.fork()
    if not pid:
        held = bytearray(2 << 30)
    os.waitpid(pid, 0)
"""
_KEPT = """
import os
for channel in (1, 2): os.write(channel, bytes(256 * 1024))
"""
_STORED = """
import os
for _ in range(2048): os.write(1, bytes(65536))
"""
_LEFT_BEHIND = """
import os, time
if not os.fork(): time.sleep(300)
"""
_LOCKS = """
import fcntl, struct
file = open("locked", "w+")
for number in range(200_000):
    try: fcntl.fcntl(file, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 2 * number, 1, 0))
    except OSError: break
while True: pass
"""
_PRINTS = """
import os
data = bytes(65536)
while True: os.write(1, data)
"""
_BYTES = """
import os
while True: os.write(1, b"x")
"""
_MEMORY = """
import mmap
while True:
    try:
        held = mmap.mmap(-1, 256 << 20)
        for at in range(0, 256 << 20, 4096): held[at] = 1
        held.close()
    except (OSError, ValueError): pass
"""

ATTACKS = {
    "output of 4 executions at full speed": (_PRINTS, 4),
    "output of 32 executions byte by byte": (_BYTES, 32),
    "forks": (_FORKS, 8),
    "exec": (_EXECS, 8),
    "orphans for PID 1": (_ORPHANS, 8),
    "SIGCHLD to PID 1": (_SIGNALS, 4),
    "fsync of a file of the host": (_FLUSHES, 4),
    "4,000 ACLs of 8,000 entries": (_ACLS, 1),
    "900 sockets with 1,000 multicast sources": (_MULTICAST, 1),
    "300 sockets with 700 keys for segments": (_SEGMENT_KEYS, 1),
    "timers, signals and inotify up to their limits": (_COUNTED, 1),
    "a loop of kills for memory": (_KILLED_FOR_MEMORY, 1),
    "100 executions that keep 512 KiB each": (_KEPT, 100),
    "8 executions that store 128 MiB each": (_STORED, 8),
    "100 executions that leave a process behind": (_LEFT_BEHIND, 100),
    "200,000 file locks": (_LOCKS, 1),
    "pages taken and given back": (_MEMORY, 4),
}
