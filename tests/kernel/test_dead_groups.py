"""Groups that the kernel keeps for one page of a file of the host, after they were removed: they do not add up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from app.launcher.daemon import cgroup_mounts
from app.launcher.daemon.dead_groups import MOST
from tests.kernel import host
from tests.service import Service

_PAGES = 64  # between two reads: beyond what the kernel reads ahead


def memory_groups() -> int:
    """Of the whole host, removed ones that stay included."""
    lines = Path("/proc/cgroups").read_text().splitlines()
    return next(int(line.split()[2]) for line in lines if line.startswith("memory\t"))


def largest() -> Path:
    """Of the host, and large enough for every execution to read a page that no other has read."""
    files = [path for path in Path("/usr").rglob("*") if path.is_file() and not path.is_symlink()]
    return max(files, key=lambda path: path.stat().st_size)


def read_pages(service: Service, sandbox: str, large: Path, numbers: range) -> None:
    with large.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert large.stat().st_size > numbers.stop * _PAGES * 4096
    for number in numbers:
        where = f"skip={number * _PAGES}"
        done = service.run(sandbox, "dd", f"if={large}", "of=/dev/null", "bs=4096", "count=1", where)
        assert done["exit"]["code"] == 0, done


def stayed_of_200(root: Path, version: int) -> int:
    """How many groups stay in which a process read a page of a file of ours, as far as the host is quiet."""
    before = memory_groups()
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(bytes(200 * _PAGES * 4096))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for number in range(200):
            group = root / str(number)
            group.mkdir()
            child = os.fork()
            if child == 0:
                (group / "cgroup.procs").write_text("0")
                os.pread(file.fileno(), 1, number * _PAGES * 4096)
                os._exit(0)
            os.waitpid(child, 0)
            group.rmdir()
        stayed = memory_groups() - before
    (root / ("memory.force_empty" if version == 1 else "memory.reclaim")).write_text("0" if version == 1 else "64M")
    return stayed


def test_groups_stay_for_a_page_without_the_service() -> None:
    """The control. Groups of earlier tests may be let go meanwhile, so it has some rounds."""
    text = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    version, places = cgroup_mounts.locate(*text)
    root = Path(next(folder for names, folder in places if "memory" in names), "bulkhead-test-dead")
    root.mkdir(exist_ok=True)
    if version == 2:
        (root / "cgroup.subtree_control").write_text("+memory")
    try:
        assert any(stayed_of_200(root, version) > 50 for _ in range(5))
    finally:
        root.rmdir()


def test_groups_of_ended_executions_stay_for_a_page_up_to_a_number_only(service: Service) -> None:
    sandbox, before = service.create(), memory_groups()
    read_pages(service, sandbox, largest(), range(400))
    host.until(lambda: memory_groups() - before < MOST + 40, "the kernel has let go of most")
    service.call("DELETE", f"/sandboxes/{sandbox}")
