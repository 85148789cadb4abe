"""Commands against their own PID 1, and against what starts them. Checklist B26, B29, C41, E57."""

from __future__ import annotations

import resource
import subprocess
import sys
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


STORM = "import os, sys\nfor _ in range(2000000): os.kill(int(sys.argv[1]), 17)"
# What any program does that waits for its children.
WAITS = "import signal\nsignal.signal(17, lambda *_: None)\nprint('up', flush=True)\nwhile True: signal.pause()"


def test_who_handles_a_signal_pays_for_each_of_a_storm() -> None:
    """The control."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as waits:
        assert waits.stdout is not None
        assert waits.stdout.readline() == b"up\n"
        before, own = host.cpu_ns(waits.pid), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", STORM, str(waits.pid)], check=True)
        used, after = host.cpu_ns(waits.pid) - before, resource.getrusage(resource.RUSAGE_CHILDREN)
        waits.kill()
    assert used / 1e9 > 0.2 * (after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime)


def test_signal_storm_makes_init_work_for_a_tenth_of_a_processor_at_most(service: Service, sandbox: str) -> None:
    worker = host.worker_of(service, sandbox)
    before = host.cpu_ns(worker)
    ending = service.run(sandbox, "python3", "-c", STORM, "1")["exit"]
    assert ending["code"] == 0
    assert (host.cpu_ns(worker) - before) / 1e9 < 0.1 * ending["cpu_seconds"]
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
    """The worker waits in a vfork for a child that the storm stops before its exec: it is killed after a while. What
    the storm stops after its exec is killed by a DELETE, and the worker tells its end while the storm goes on."""
    sandbox = service.create()
    try:
        storm = start(service, sandbox, "python3", "-c", STOP)
        storm.saw(b"up")
        for _ in range(2):
            stopped = start(service, sandbox, "sleep", "1000")
            assert stopped.delete() == 204
            ending = stopped.exit()
            if ending["reason"] == "start_failed":
                assert "something in the sandbox stopped it" in ending["detail"]
            else:
                assert (ending["reason"], ending["signal"]) == ("killed", "SIGKILL")
        assert storm.show()["state"] == "running"
        assert storm.delete() == 204
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
