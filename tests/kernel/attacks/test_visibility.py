"""What a sandbox sees of itself and of the host: its receipt is true, and of the host there is nothing to find.

Checklist A1, A13, A14, A15, C40, C43.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.launcher.sandbox.mounts import MASKED_FILES, MASKED_FOLDERS
from tests.kernel import host
from tests.require import require_program
from tests.service import PROJECT, Service

STATUS = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
names = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
print(json.dumps({
    "status": status, "uid_map": open("/proc/self/uid_map").read().split(), "ids": os.getresuid() + os.getresgid(),
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in names},
    "cgroup": open("/proc/self/cgroup").read(), "host": os.uname().nodename, "groups": os.getgroups(),
}))
"""
# Everything below /proc that can be read, but the large tables of each process.
READ_ALL = """
import os, sys
for folder, folders, files in os.walk("/proc"):
    if folder.count("/") > 2 and not folder.startswith(("/proc/1", "/proc/self", "/proc/sys")):
        folders.clear()
    folders[:] = [name for name in folders if name not in ("task", "map_files", "thread-self")]
    for name in files:
        try:
            descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK)
            sys.stdout.buffer.write(os.read(descriptor, 65536))
            os.close(descriptor)
        except OSError:
            continue
        try:
            sys.stdout.buffer.write(os.readlink(f"{folder}/{name}").encode())
        except OSError:
            continue
print(dict(os.environ))
"""
LIST_DESCRIPTORS = "import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))"
WRITABLE = {"/workspace", "/tmp", "/dev/shm"}


def test_receipt_is_what_a_command_reads_of_itself(service: Service, sandbox: str) -> None:
    receipt = service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]
    seen = json.loads(service.run(sandbox, "python3", "-c", STATUS)["stdout"])
    status = seen["status"]
    assert {name: int(status["Cap" + name.capitalize()], 16) for name in receipt["capabilities"]} == receipt[
        "capabilities"
    ]
    assert set(receipt["capabilities"].values()) == {0}
    assert (status["NoNewPrivs"], receipt["no_new_privs"]) == ("1", True)
    assert (status["Seccomp"], receipt["seccomp"]["mode"]) == ("2", "filter")
    assert seen["uid_map"] == ["1000", str(receipt["host_uid"]), "1"]
    assert (seen["ids"], seen["groups"]) == ([1000] * 6, [])
    own = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in seen["namespaces"]}
    entered = {name for name, link in seen["namespaces"].items() if link != own[name]}
    assert entered == set(receipt["namespaces"]) == set(own)
    assert seen["host"] == "sandbox"


def test_no_descriptor_is_inherited(service: Service, sandbox: str) -> None:
    """Control: a child that inherits shows one more."""
    with Path(os.devnull).open() as extra:
        argv = [sys.executable, "-c", LIST_DESCRIPTORS]
        control = subprocess.run(argv, pass_fds=(extra.fileno(),), capture_output=True, text=True, check=True)
        assert str(extra.fileno()) in control.stdout
    for body in ({}, {"stdin": "open"}, {"env": {"LARGE": "x" * 100_000}}):
        done = service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": argv_inside(), **body})[1]
        path = f"/sandboxes/{sandbox}/executions/{done['id']}"
        service.ended(path)
        assert service.output(path) == b"[0, 1, 2, 3]\n", body  # 3 is the listing itself


def argv_inside() -> list[str]:
    return ["python3", "-c", LIST_DESCRIPTORS]


def test_nothing_tells_of_the_host(service: Service, sandbox: str) -> None:
    """Control: the same words stand in the gateway's own files."""
    gateway = service.children()["gateway"]
    words = [str(PROJECT), str(service.process.args[-1]), "BULKHEAD", "launcher.sock"]  # type: ignore[index]
    control = Path(f"/proc/{gateway}/environ").read_text() + Path(f"/proc/{gateway}/cmdline").read_text()
    assert [word for word in words if word not in control] == []
    done = service.run(sandbox, "python3", "-c", READ_ALL)
    assert done["exit"]["code"] == 0, done["stderr"]
    assert len(done["stdout"]) > 10_000
    assert [word for word in words if word in done["stdout"]] == []


def test_init_tells_a_name_and_nothing_else(service: Service, sandbox: str) -> None:
    script = 'cat /proc/1/cmdline | tr -d "\\0 "; echo; cat /proc/1/comm; ls /proc | grep -c "^[0-9]"'
    name, comm, processes = service.run(sandbox, "sh", "-c", script)["stdout"].split()
    assert (name, comm) == ("bulkhead", "bulkhead")
    assert int(processes) <= 5  # init, the shell, ls and grep
    assert len(host.pids()) > int(processes)


def test_every_mount_is_read_only_but_the_three_of_its_own(service: Service, sandbox: str) -> None:
    text = service.run(sandbox, "cat", "/proc/self/mountinfo")["stdout"]
    top: dict[str, list[str]] = {}  # a later mount covers an earlier one at the same place
    for line in text.splitlines():
        fields = line.split(" ")
        top[fields[4]] = fields
    writable = {place for place, fields in top.items() if "ro" not in fields[5].split(",")}
    assert writable == WRITABLE | {"/dev/pts"}  # of which the terminals are its own instance
    assert top["/dev/pts"][-3] == "devpts"
    for place, fields in top.items():
        assert "nosuid" in fields[5].split(","), place
        if place in WRITABLE | {"/usr", "/proc"}:
            assert "nodev" in fields[5].split(","), place
    assert all(top[place][-2] == "sandbox" for place in WRITABLE)


def test_devices_are_the_harmless_ones(service: Service, sandbox: str) -> None:
    found = set(service.run(sandbox, "ls", "/dev")["stdout"].split())
    links = {"fd", "stdin", "stdout", "stderr", "ptmx"}
    assert found == {"null", "zero", "full", "random", "urandom", "tty", "shm", "pts"} | links


def test_etc_holds_no_secret_of_the_host(service: Service, sandbox: str) -> None:
    script = "cat /etc/passwd /etc/group /etc/hostname /etc/hosts; find /etc -name 'shadow*' -o -name '*_key*'"
    said = service.run(sandbox, "sh", "-c", script)["stdout"]
    assert "/etc/" not in said
    hosts_own = {line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()} - {"root", "nobody"}
    assert [name for name in hosts_own if f"{name}:x:" in said] == []


def test_nothing_of_sysfs_can_be_seen_but_the_own_control_groups(service: Service, sandbox: str) -> None:
    done = service.run(sandbox, "sh", "-c", "ls -A /sys; ls -A /sys/fs; grep -- '- cgroup' /proc/self/mountinfo")
    folders, mounts = done["stdout"].splitlines()[:2], done["stdout"].splitlines()[2:]
    assert folders == ["fs", "cgroup"]
    assert mounts
    for line in mounts:
        fields = line.split()
        assert (fields[3], fields[4].startswith("/sys/fs/cgroup")) == ("/", True)
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(fields[5].split(","))


def test_membership_in_control_groups_tells_no_name(service: Service, sandbox: str) -> None:
    """Control: outside, the same processes are in groups with the sandbox's id."""
    control = Path(f"/proc/{host.worker_of(service, sandbox)}/cgroup").read_text()
    assert "_workers" in control
    for turn in range(2):
        script = "cat /proc/self/cgroup; echo; cat /proc/1/cgroup; echo; cat /proc/1/task/1/cgroup"
        own, init, task = service.run(sandbox, "sh", "-c", script)["stdout"].split("\n\n")
        paths = [line.split(":", 2)[2] for line in own.splitlines()]
        assert [path for path in paths if not re.fullmatch(r"/\d*", path)] == [], turn
        assert any(path != "/" for path in paths)
        assert {line.split(":", 2)[2] for line in f"{init}\n{task}".splitlines()} == {"/"}


def test_list_of_controllers_is_readable_and_tells_no_number_of_groups(service: Service, sandbox: str) -> None:
    """Control: the host's own counts the groups of the sandboxes."""
    rows = [line.split("\t") for line in Path("/proc/cgroups").read_text().splitlines()]
    assert any(int(row[2]) > 1 for row in rows[1:])
    said = service.run(sandbox, "cat", "/proc/cgroups")["stdout"]
    assert [line.split("\t") for line in said.splitlines()] == [rows[0], *([*row[:2], "1", row[3]] for row in rows[1:])]


def test_counts_of_what_the_whole_host_does_cannot_be_read(service: Service, sandbox: str) -> None:
    """Control: everybody on the host may read most of them."""
    paths = [f"/proc/{name}" for name in (*MASKED_FILES, *MASKED_FOLDERS) if Path("/proc", name).exists()]
    assert {"/proc/vmstat", "/proc/softirqs", "/proc/zoneinfo", "/proc/diskstats"} <= set(paths)
    assert Path("/proc/vmstat").stat().st_mode & 0o004
    said = service.run(sandbox, "cat", *paths)
    assert said["stdout"] == ""
    assert said["stderr"].splitlines() == [f"cat: {path}: Permission denied" for path in paths]


@pytest.mark.parametrize(
    ("program", "prints"),
    [
        ("nproc", r"\d+"),
        ("free -b", r"Mem: +\d+ +\d+"),
        ("top -b -n 1", r"MiB Mem"),
        ("ps aux", r"ps aux"),
        ("uptime", r"load average"),
        ("node -p os.totalmem()+os.cpus().length", r"\d+"),
        ("java -XshowSettings:system -version", r"(?i)operating system metrics|provider"),
    ],
)
def test_programs_that_ask_for_the_machine_still_get_an_answer(
    service: Service, sandbox: str, program: str, prints: str
) -> None:
    name = program.split(maxsplit=1)[0]
    if name in ("node", "java"):
        require_program(name)
    done = service.run(sandbox, *program.split())
    assert done["exit"]["code"] == 0, done["stderr"]
    assert re.search(prints, done["stdout"] + done["stderr"])
