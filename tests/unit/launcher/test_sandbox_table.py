"""What the launcher does with a sandbox whose worker is ready."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.launcher.daemon.sandbox_process import SandboxProcess
from app.launcher.daemon.sandbox_table import SandboxTable
from app.launcher.protocol import CreatePlan, ProtocolError


def test_sandbox_that_cannot_be_kept_to_its_processors_is_ended_and_not_served() -> None:
    def refuse(cpus: list[int]) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    killed: list[bool] = []
    sandbox = SimpleNamespace(
        creating=1,
        connection=object(),
        cpus=[1],
        groups=SimpleNamespace(limit_cpus=refuse),
        kill=lambda: killed.append(True),
        failure=None,
    )
    SandboxTable.__new__(SandboxTable)._welcome(cast(Any, sandbox))
    assert sandbox.failure == ("limit_cpus", errno.EACCES, "Permission denied")
    assert (killed, sandbox.creating) == ([True], 1), "its create is answered when it has ended"


def with_ports(*ports: int) -> SandboxProcess:
    made = SandboxProcess.__new__(SandboxProcess)
    made.plan = CreatePlan("one", "host", "default", 1, 1, 1, 1, False, [], [], ports=list(ports))
    made.listeners = []
    return made


@pytest.mark.parametrize(("ports", "given"), [((), 1), ((443,), 0), ((443,), 1), ((443,), 3), ((80, 443), 2)])
def test_sockets_that_do_not_fit_the_plan_are_not_taken(ports: tuple[int, ...], given: int) -> None:
    sandbox, descriptors = with_ports(*ports), list(range(100, 100 + given))
    with pytest.raises(ProtocolError):
        sandbox.take_listeners(descriptors)
    assert (len(descriptors), sandbox.listeners) == (given, []), "whoever received them closes them"


def test_sockets_are_taken_once() -> None:
    sandbox, descriptors = with_ports(80, 443), [100, 101, 102]
    sandbox.take_listeners(descriptors)
    assert (sandbox.listeners, descriptors) == ([100, 101, 102], [])
    with pytest.raises(ProtocolError):
        sandbox.take_listeners([103, 104, 105])


def test_sockets_that_nobody_was_given_are_closed_with_the_sandbox() -> None:
    sandbox = with_ports(80)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    sandbox.pid, sandbox.pidfd, sandbox._spare = pid, os.pidfd_open(pid), None
    sandbox.channel = cast(Any, SimpleNamespace(close=lambda: None))
    held, other = os.pipe()
    sandbox.take_listeners([os.dup(other), other])
    sandbox.reap()
    assert os.read(held, 1) == b"", "nobody holds the other end any more"
    os.close(held)
