"""A narrowed policy is narrower in the kernel too, and the profile `loopback` opens loopback and nothing else.

Checklist A2, A11, D45.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.policy import Filesystem, Policy
from tests.kernel.attacks.mutants import Launcher
from tests.require import require
from tests.service import Service

NARROW = {"filesystem": {"read_only": ["/usr/bin", "/usr/lib", "/usr/lib64"], "read_write": ["/workspace"]}}


def test_narrowed_paths_are_all_there_is(service: Service) -> None:
    sandbox = service.create(policy=NARROW)
    script = """
        echo x > /workspace/x && cat /workspace/x
        for path in /etc/passwd /usr/share/common-licenses/GPL-3 /usr/include/stdio.h; do cat $path; done
        for path in /tmp/x /dev/shm/x; do echo x > $path; done
        ls /usr/share; ls /etc; ls /tmp
    """
    done = service.run(sandbox, "/usr/bin/sh", "-c", script)
    assert done["stdout"] == "x\n"
    lines = done["stderr"].splitlines()
    assert len(lines) == 8
    assert [line for line in lines if "Permission denied" not in line and "No such file" not in line] == []
    assert sum("Permission denied" in line for line in lines) >= 6
    wide = service.create()  # the control
    assert service.run(wide, "sh", "-c", script)["stderr"].count("Permission denied") == 0
    for each in (sandbox, wide):
        service.call("DELETE", f"/sandboxes/{each}")


def test_workspace_can_be_read_only(service: Service) -> None:
    policy = {"filesystem": {"read_only": ["/usr", "/workspace"], "read_write": ["/tmp"]}}
    sandbox = service.create(policy=policy)
    script = (
        "echo x > /workspace/x; mkdir /workspace/d; ln -s a /workspace/l; ls /workspace; echo x > /tmp/x; cat /tmp/x"
    )
    done = service.run(sandbox, "sh", "-c", script)
    assert done["stdout"] == "x\n"
    assert done["stderr"].count("Permission denied") == 3
    service.call("DELETE", f"/sandboxes/{sandbox}")


LOOPBACK = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
server.sendall(b"own loopback")
print(client.recv(64).decode())
"""


def test_profile_loopback_lets_tcp_run_inside(service: Service, sandbox: str) -> None:
    wide = service.create(policy={"profile": "loopback"})
    assert service.run(wide, "python3", "-c", LOOPBACK)["stdout"] == "own loopback\n"
    refused = service.run(sandbox, "python3", "-c", LOOPBACK)
    assert "PermissionError: [Errno 13]" in refused["stderr"]
    service.call("DELETE", f"/sandboxes/{wide}")


@pytest.fixture
def set_uid(probe: Path) -> Iterator[Path]:
    """A set-uid program of root's, which works on this host: outside of /tmp, which every sandbox has of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bulkhead-test-", dir="/var/lib"))
    try:
        folder.chmod(0o755)
        program = folder / "gain"
        shutil.copy(probe, program)
        program.chmod(0o4755)
        run = subprocess.run([program, "--ids"], user=65534, group=65534, capture_output=True, text=True, check=True)
        require("setuid", run.stdout == "65534 0\n", "set-uid programs gain nothing on this host")
        yield program
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_set_uid_program_gains_nothing(set_uid: Path, tmp_path: Path) -> None:
    """The launcher as it is, with the program's folder in its template and in the policy."""
    folder = str(set_uid.parent)
    policy = Policy(filesystem=Filesystem(read_only=("/usr", "/etc", folder)))
    with Launcher(tmp_path, extra=(folder,)) as running:
        assert await running.run(str(set_uid), "--ids", policy=policy) == "1000 1000\n"
        own = f"cp {set_uid} own && chmod 4755 own && ./own --ids"
        assert await running.run("sh", "-c", own, policy=policy) == "1000 1000\n"
