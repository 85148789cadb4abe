"""Plans of a gateway that was taken over: nothing beyond the launcher's own configuration can be asked for."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from app.egress.authority import new_authority
from app.launcher.protocol import CREATE, EXECUTE, ExecutionPlan, Writer, pack_command
from tests.kernel import host
from tests.kernel.direct import MIB, SPARE, Gateway, Launched, Refused, plan

CERTIFICATE = new_authority().certificate.encode()


def refusal(gateway: Gateway, **changes: object) -> tuple[str, int]:
    with pytest.raises(Refused) as error:
        gateway.create(plan(**changes))  # type: ignore[arg-type]
    return error.value.step, error.value.errno


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"read_only": ["usr"]}, errno.EINVAL),
        ({"read_only": ["/usr/../etc"]}, errno.EINVAL),
        ({"read_write": ["/workspace/.."]}, errno.EINVAL),
        ({"read_write": ["/tmp\0/x"]}, errno.EINVAL),
        ({"template": "/"}, errno.ENOENT),
        ({"template": "../host"}, errno.ENOENT),
        ({"template": ""}, errno.ENOENT),
        ({"filter_name": "none"}, errno.ENOENT),
        ({"filter_name": ""}, errno.ENOENT),
        ({"cpu_millis": 0}, errno.ERANGE),
        ({"cpu_millis": 1001}, errno.ERANGE),
        ({"cpu_millis": 2**32 - 1}, errno.ERANGE),
        ({"memory_bytes": 0}, errno.ERANGE),
        ({"memory_bytes": (1 << 32) + 1}, errno.ERANGE),
        ({"memory_bytes": 2**64 - 1}, errno.ERANGE),
        ({"disk_bytes": 0}, errno.ERANGE),
        ({"disk_bytes": 2**64 - 1}, errno.ERANGE),
        ({"processes": 0}, errno.ERANGE),
        ({"processes": 2**32 - 1}, errno.ERANGE),
        *[({"sandbox_id": bad}, errno.EINVAL) for bad in (
            "../x", "Upper", "", "a" * 64, "a/b", "-a", "_a", ".", "a\nb", "a\0b", "ä", "a b", "²", "cgroup.procs"
        )],
        ({"sandbox_id": "honest"}, errno.EEXIST),
        ({"ports": list(range(80, 97))}, errno.ERANGE),
        ({"ports": [0]}, errno.ERANGE),
        ({"ports": [53]}, errno.ERANGE),
        ({"ports": [443, 65_536]}, errno.ERANGE),
        ({"ports": [443, 80]}, errno.EINVAL),
        ({"ports": [80, 80]}, errno.EINVAL),
        *[({"authority": bad}, errno.EINVAL) for bad in (
            b"x", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            CERTIFICATE + CERTIFICATE, CERTIFICATE + b"x", b"x" + CERTIFICATE, CERTIFICATE.replace(b"M", b"!"),
            CERTIFICATE.replace(b"CERTIFICATE", b"PRIVATE KEY"), CERTIFICATE[:-1],
        )],
    ],
)  # fmt: skip
def test_a_plan_out_of_bounds_is_refused(hostile: Gateway, change: dict[str, object], number: int) -> None:
    assert refusal(hostile, **change) == ("plan", number)
    hostile.create().close()  # the connection still works


def test_a_disk_is_refused_by_a_launcher_that_makes_none(hostile: Gateway) -> None:
    assert refusal(hostile, on_disk=True) == ("layer:loop_storage", errno.ENOSYS)
    hostile.create().close()


@pytest.mark.parametrize(
    "limits",
    [
        ExecutionPlan(memory_bytes=1),
        ExecutionPlan(memory_bytes=16 * MIB - 1),
        ExecutionPlan(stack_bytes=1),
        ExecutionPlan(open_files=1),
        ExecutionPlan(file_bytes=1),
        ExecutionPlan(cpu_ns=1),
    ],
)
def test_limits_under_which_nothing_works_are_refused_and_the_worker_lives(
    hostile: Gateway, limits: ExecutionPlan
) -> None:
    with hostile.create() as owner, Path(os.devnull).open("r+b") as null:
        header = limits.write(Writer(0).text("one").u32(1).u8(0)).data[1:]
        body = pack_command([b"true"], [b"PATH=/usr/bin"], b"/workspace")
        with pytest.raises(Refused) as error:
            hostile.ask(EXECUTE, bytes(header) + body, [null.fileno()] * 3)
        assert (error.value.step, error.value.errno) == ("plan", errno.ERANGE)
        assert hostile.run(owner, 1, "echo", "here") == (b"here\n", 0)


def test_a_host_path_is_a_path_of_the_template(hostile: Gateway) -> None:
    """What the template has not cannot be named; what it has is the sandbox's own anyway."""
    for path in ("/root", "/var/lib", "/home", "/sys/kernel", str(Path(__file__).parent)):
        assert refusal(hostile, read_only=[path])[0] == "restrict_files"
    assert refusal(hostile, read_write=["/"])[0] == "prove_landlock", "the canary could be read then"
    with hostile.create(plan(read_write=["/workspace", "/usr", "/etc", "/proc", "/dev", "/sys"])) as owner:
        script = "for f in /usr/x /etc/x /x /proc/x /dev/x /sys/x /sys/fs/cgroup/*/tasks; do echo > $f; done; "
        script += "ls -A /root /home /sys/kernel; "
        script += "id -u; cat /etc/passwd"
        out, _ = hostile.run(owner, 1, "sh", "-c", script)
        assert out.startswith(b"1000\nroot:x:0:0:root:/nonexistent"), out
    assert not Path("/usr/x").exists()


def test_a_plan_has_no_field_for_a_uid_a_mount_or_a_capability() -> None:
    assert set(plan().__slots__) == {
        "sandbox_id", "template", "filter_name", "cpu_millis", "memory_bytes", "disk_bytes", "processes",
        "loopback_tcp", "on_disk", "ports", "read_only", "read_write", "authority",
    }  # fmt: skip


def test_a_hundred_thousand_creates_are_bounded(launched: Launched, hostile: Gateway) -> None:
    """By `max_sandboxes`; the launcher's memory and descriptors are too."""
    config, child = launched
    before = host.resident_mib(child.pid)
    owners = [hostile.create(plan(f"s{n}")) for n in range(config.max_sandboxes - 1)]
    open_before = len(host.descriptors(child.pid))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    body = bytes(plan("more").write(Writer(0)).data[1:])
    waiting: list[int] = []
    for _ in range(100_000):
        waiting.append(hostile.post(CREATE, body, [theirs.fileno()]))
        if len(waiting) == 100:
            for number in waiting:
                with pytest.raises(Refused) as error:
                    hostile.answer(number)
                assert error.value.errno == errno.EDQUOT
            waiting.clear()
    assert len(host.descriptors(child.pid)) <= open_before + SPARE
    assert host.resident_mib(child.pid) - before < 8
    for end in (ours, theirs, *owners):
        end.close()
