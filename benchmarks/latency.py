"""Create, execute, delete over REST, in one interleaved run with bubblewrap's command line and a bare posix_spawn."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rest import Rest

BUBBLEWRAP = [
    *("--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"),
    *("--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/workspace", "--chdir", "/workspace"),
    "/bin/true",
]


MASKED = ("kcore", "keys", "kallsyms", "cmdline", "interrupts", "locks", "timer_list")
# The same view of the host as a sandbox has: what of /proc is masked, and three writable places.
SAME_VIEW = [
    *BUBBLEWRAP[:-1],
    *(word for name in MASKED if Path(f"/proc/{name}").exists()
      for word in ("--ro-bind", "/dev/null", f"/proc/{name}")),
    *("--tmpfs", "/dev/shm", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000", "--clearenv", "/bin/true"),
]  # fmt: skip


def spawn(command: list[str]) -> None:
    pid = os.posix_spawn(command[0], command, os.environ)
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError(f"{command[0]} failed")


def measure(port: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per operation. The order changes from round to round: none always follows the same other."""
    rest = Rest(port)
    standing = rest.create()
    samples: dict[str, list[float]] = {}

    def timed(name: str, action: Callable[[], object]) -> object:
        began = time.perf_counter()
        result = action()
        samples.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def one_shot() -> None:
        began = time.perf_counter()
        sandbox = str(timed("create", rest.create))
        rest.execute(sandbox, "/bin/true")
        timed("delete", lambda: rest.delete(sandbox))
        samples.setdefault("create + execute + delete", []).append(time.perf_counter() - began)

    operations: list[Callable[[], object]] = [
        lambda: timed("posix_spawn /bin/true (floor)", lambda: spawn(["/bin/true"])),
        lambda: timed("execute in an existing sandbox", lambda: rest.execute(standing, "/bin/true")),
        lambda: timed("GET one sandbox", lambda: rest("GET", f"/sandboxes/{standing}")),
        one_shot,
    ]
    bubblewrap = shutil.which("bwrap")
    if bubblewrap:
        bare, same = [bubblewrap, *BUBBLEWRAP], [bubblewrap, *SAME_VIEW]
        operations.append(lambda: timed("bubblewrap, all namespaces, bare", lambda: spawn(bare)))
        operations.append(lambda: timed("bubblewrap, the same view of the host", lambda: spawn(same)))
    warm_up = max(5, rounds // 10)
    for number in range(rounds + warm_up):
        for operation in random.sample(operations, len(operations)):
            operation()
        if number == warm_up - 1:
            samples.clear()
    rest.delete(standing)
    rest.close()
    return samples
