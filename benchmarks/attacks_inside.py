"""What one sandbox does to the machine: Python programs that run in it, and how many of them."""

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
_SOCKETS = """
import socket
held = []
for number in range(2000):
    try:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        held.append(one)
        one.setsockopt(0, 48, bytes(4096))
    except OSError: pass
while True: pass
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
    "2,000 sockets with options": (_SOCKETS, 1),
    "200,000 file locks": (_LOCKS, 1),
    "pages taken and given back": (_MEMORY, 4),
}
