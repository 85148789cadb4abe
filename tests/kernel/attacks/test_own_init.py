"""Commands against their own PID 1, and against what starts them. Checklist B26, B29, C41, E57."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.talk import start
from tests.service import Service

KILL = """
import errno, os, signal, subprocess
for number in range(1, 65):
    try:
        os.kill(1, number)
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.EINVAL), error
child = subprocess.Popen(["sleep", "1000"])  # the control: the same call ends whoever has no such protection
child.kill()
print(child.wait(), open("/proc/1/stat").read().split()[2] in "SR")
"""


def test_no_signal_harms_the_own_init(service: Service, sandbox: str) -> None:
    assert service.run(sandbox, "python3", "-c", KILL)["stdout"] == "-9 True\n"
    assert service.run(sandbox, "echo", "still here")["stdout"] == "still here\n"
    assert service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "running"


def test_signal_storm_does_not_keep_init_from_its_work(service: Service, sandbox: str) -> None:
    storm = "import os, signal\nfor _ in range(200000): os.kill(1, signal.SIGCHLD)"
    assert service.run(sandbox, "python3", "-c", storm)["exit"]["code"] == 0
    assert service.run(sandbox, "echo", "still here")["stdout"] == "still here\n"


STOP = """
import os, signal
print("up", flush=True)
while True:
    try:
        os.kill(-1, signal.SIGSTOP)
    except OSError:
        pass
"""


def test_stop_storm_does_not_keep_init_from_its_work(service: Service) -> None:
    """The worker waits in a vfork for a child that the storm stops before its exec: it is killed after a while."""
    sandbox = service.create()
    try:
        storm = start(service, sandbox, "python3", "-c", STOP)
        storm.saw(b"up")
        for _ in range(2):
            done = service.run(sandbox, "true")
            assert done["exit"]["reason"] in {"exited", "start_failed"}, done["exit"]
        assert service.call("DELETE", storm.path)[0] == 204
        assert service.run(sandbox, "true")["exit"]["code"] == 0
    finally:
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


PRELOAD = """
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) { puts("loaded"); }
"""


def test_preloaded_library_reaches_the_command_and_not_init(service: Service, sandbox: str) -> None:
    build = 'printf "%s" "$1" > a.c && gcc -shared -fPIC -o evil.so a.c'
    assert service.run(sandbox, "sh", "-c", build, "sh", PRELOAD)["exit"]["code"] == 0
    env = {"LD_PRELOAD": "/workspace/evil.so", "PYTHONPATH": "/workspace", "PYTHONHOME": "/workspace"}
    assert service.run(sandbox, "true", env=env)["stdout"] == "loaded\n"  # the control: it does load
    assert "evil" not in Path(f"/proc/{host.worker_of(service, sandbox)}/maps").read_text()
    assert service.run(sandbox, "true")["stdout"] == ""


def test_path_of_the_command_finds_only_what_is_inside(service: Service, sandbox: str) -> None:
    make = "mkdir bin; printf '#!/bin/sh\\necho mine\\n' > bin/true; chmod 755 bin/true"
    service.run(sandbox, "sh", "-c", make)
    assert service.run(sandbox, "true", env={"PATH": "/workspace/bin"})["stdout"] == "mine\n"
    lost = service.run(sandbox, "true", env={"PATH": "/sbin/../../../opt:/root"})
    assert (lost["exit"]["reason"], "ENOENT" in lost["exit"]["detail"]) == ("start_failed", True)


@pytest.mark.parametrize("program", ["/proc/1/exe", "/proc/1/root/bin/sh", "/proc/1/fd/3", "/proc/self/fd/5"])
def test_program_of_init_cannot_be_started(service: Service, sandbox: str, program: str) -> None:
    ended = service.run(sandbox, program)["exit"]
    assert ended["reason"] == "start_failed", ended


@pytest.mark.parametrize("folder", ["/proc/self/fd", "/proc/self/task/1/fd", "/proc/1/fd"])
def test_working_directory_leads_to_no_descriptor_of_init(service: Service, sandbox: str, folder: str) -> None:
    """The worker may enter its own folder of descriptors, and the command inherits where it stands."""
    script = "for i in 0 1 2 3 4 5 6 7 8 9 10 11 12; do cat ./$i; readlink ./$i; done; ls ."
    done = service.run(sandbox, "sh", "-c", script, workdir=folder)
    assert done["stdout"] == "", done


MEMFD = """
import os
descriptor = os.memfd_create("cat", 0)
os.write(descriptor, open("/usr/bin/cat", "rb").read())
os.execve(descriptor, ["cat", "/proc/self/status"], {})
"""


def test_program_from_memory_is_as_confined_as_any(service: Service, sandbox: str) -> None:
    status = service.run(sandbox, "python3", "-c", MEMFD)["stdout"]
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert "CapEff:\t0000000000000000" in status
