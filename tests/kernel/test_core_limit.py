"""A crash inside must not write to the host: not a core file, and not through a core dump program of the host's."""

from __future__ import annotations

from tests.service import Service

SET_TO_ZERO = """
import ctypes, mmap, resource
assert resource.getrlimit(resource.RLIMIT_CORE) == (1, 1), resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
FIXED, ANONYMOUS_PRIVATE, LOW_HALF_EMPTY = 0x100000, 0x22, 0x1_0000_0000
at = libc.mmap(ctypes.c_void_p(LOW_HALF_EMPTY), 4096, 3, ANONYMOUS_PRIVATE | FIXED, -1, 0)
assert at == LOW_HALF_EMPTY
ctypes.memset(at, 0, 16)
assert libc.syscall(302, 0, 4, ctypes.c_void_p(at), None) == 0
assert libc.syscall(160, 4, ctypes.c_void_p(at)) == 0
print(resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_core_limit_stays_one_whatever_a_command_sets(service: Service, sandbox: str) -> None:
    """core(5): with a core_pattern that is a pipe a limit of 0 does not stop the dump, a limit of 1 does."""
    done = service.run(sandbox, "python3", "-c", SET_TO_ZERO)
    assert done["stderr"] == ""
    assert done["stdout"] == "(1, 1)\n"


def test_crash_leaves_no_core_file(service: Service, sandbox: str) -> None:
    done = service.run(sandbox, "sh", "-c", "cd /workspace; sh -c 'kill -SEGV $$'; ls -A /workspace")
    assert done["stdout"] == ""
