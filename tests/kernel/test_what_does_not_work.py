"""The list of docs/isolation.md, "What does not work inside": what a program of a user misses, and what helps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.require import require
from tests.service import Service

CALLS = {  # what each is answered with, and a program that makes it
    "ptrace": (
        "EPERM",
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        traceme = 0
        if libc.ptrace(traceme, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "ptrace")
        """,
    ),
    "terminal": ("EACCES", "os.openpty()"),
    "raw socket": ("EPERM", "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)"),
    "lock of an open file description": (
        "EINVAL",
        """
        import fcntl, struct
        f_ofd_setlk = 37
        with tempfile.TemporaryFile() as file:
            fcntl.fcntl(file, f_ofd_setlk, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 1, 0))
        """,
    ),
    "two sockets on a port": (
        "EADDRINUSE",
        """
        first, second = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for each in (first, second):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        """,
    ),
    "sys": ("ENOENT", "os.listdir('/sys/devices')"),
}
PROGRAM = """
import errno, os, socket, sys, tempfile, textwrap
try:
    exec(textwrap.dedent(sys.argv[1]))
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("works")
"""
LEAK = "#include <stdlib.h>\nint main(void) { char *p = malloc(5); p[0] = 1; return p[0] - 1; }\n"
OVERFLOW = "#include <stdlib.h>\nint main(int n, char **v) { char *p = malloc(5); return p[4 + n]; }\n"


@pytest.mark.parametrize("name", CALLS)
def test_call_fails_inside_and_works_outside(service: Service, sandbox: str, name: str) -> None:
    require("root", os.geteuid() == 0, "raw sockets are for root")
    error, call = CALLS[name]
    outside = subprocess.run([sys.executable, "-c", PROGRAM, call], capture_output=True, text=True, check=True)
    assert outside.stdout == "works\n"
    assert service.run(sandbox, "python3", "-c", PROGRAM, call)["stdout"] == f"{error}\n"


def test_program_that_asks_for_the_machine_sees_the_memory_and_the_processors_of_the_host(service: Service) -> None:
    """By the call `sysinfo` and by /proc/stat; /proc/meminfo and the affinity mask are its own."""
    sandbox = service.create(limits={"cpus": 1, "memory_mib": 64, "disk_mib": 16})
    ask = "import os; print(os.cpu_count(), os.sysconf('SC_PHYS_PAGES'))"
    said = service.run(sandbox, "python3", "-c", ask)["stdout"]
    service.call("DELETE", f"/sandboxes/{sandbox}")
    assert said == f"{os.cpu_count()} {os.sysconf('SC_PHYS_PAGES')}\n"


def test_address_sanitizer_works_without_the_search_for_leaks(service: Service) -> None:
    require("gcc", shutil.which("gcc") is not None, "not installed")
    sandbox = service.create()
    build = "gcc -fsanitize=address -x c -o $0 -"
    for name, source in (("leak", LEAK), ("overflow", OVERFLOW)):
        built = service.run(sandbox, "sh", "-c", f"{build} << 'END'\n{source}END", name)
        assert built["exit"]["code"] == 0, built["stderr"]
    said = service.run(sandbox, "./leak")
    assert (said["exit"]["code"], "LeakSanitizer does not work under ptrace" in said["stderr"]) == (1, True)
    off = {"ASAN_OPTIONS": "detect_leaks=0"}
    assert service.run(sandbox, "./leak", env=off)["exit"]["code"] == 0
    assert "heap-buffer-overflow" in service.run(sandbox, "./overflow", env=off)["stderr"]
    service.call("DELETE", f"/sandboxes/{sandbox}")
