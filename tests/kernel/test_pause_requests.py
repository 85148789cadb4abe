"""Pause as the launcher is asked for it: in any order, of anything, and never at its neighbours' expense."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.launcher.protocol import DESTROY, EXECUTE, PAUSE, RECORD, RESUME, STARTED
from tests.kernel import host
from tests.kernel.direct import Gateway, Launched, Refused, command, name, plan

PRINTING = "echo up; while :; do echo more; done"


@contextmanager
def printing(gateway: Gateway, sandbox_id: str = "one") -> Iterator[tuple[socket.socket, int]]:
    """(the owner's socket, where the output can be read without waiting)."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(write, True)
    with gateway.create(plan(sandbox_id)) as owner, Path(os.devnull).open("r+b") as null:
        words = command(1, ("sh", "-c", PRINTING), sandbox_id)
        gateway.post(EXECUTE, words, [null.fileno(), write, null.fileno()])
        os.close(write)
        assert RECORD.unpack(owner.recv(4096))[:2] == (STARTED, 1)
        host.until(lambda: b"more" in output(read), "it prints")
        yield owner, read
    os.close(read)


def output(read: int) -> bytes:
    """Everything that is there now; b"" at the end as well."""
    data = b""
    try:
        while piece := os.read(read, 65536):
            data += piece
    except BlockingIOError:
        pass
    return data


def worker_of(launched: Launched, owner: socket.socket) -> int:
    """The child of the launcher that holds the other end; it is asked by its execution's parent."""
    workers = host.children_of(launched[1].pid)
    (found,) = [pid for pid in workers if any("sh" in host.describe(child) for child in host.children_of(pid))]
    return found


def test_a_sandbox_that_is_destroyed_while_paused_prints_nothing_more(hostile: Gateway) -> None:
    """The pipe was emptied, so one more turn of the loop would show."""
    with printing(hostile) as (_, read):
        hostile.ask(PAUSE, name("one"))
        output(read)
        time.sleep(0.05)
        assert output(read) == b""
        hostile.destroy()
        assert output(read) == b""


def test_pause_and_resume_are_repeatable_and_answered_in_any_order(hostile: Gateway) -> None:
    with printing(hostile) as (_, read):
        pauses = [hostile.post(PAUSE, name("one")) for _ in range(3)]
        for number in pauses:
            hostile.answer(number)
        hostile.ask(PAUSE, name("one"))
        for _ in range(2):
            hostile.ask(RESUME, name("one"))
        host.until(lambda: b"more" in output(read), "it goes on")
        hostile.destroy()


def test_a_resume_that_overtakes_a_pause_cancels_it(hostile: Gateway) -> None:
    """Sent together: the worker has not had a turn to hold still in between. Whichever was first, it runs after."""
    with printing(hostile) as (_, read):
        for _ in range(20):
            pause, resume = hostile.post(PAUSE, name("one")), hostile.post(RESUME, name("one"))
            hostile.answer(resume)
            try:
                hostile.answer(pause)
            except Refused as refused:
                assert (refused.step, refused.errno) == ("pause", errno.ECANCELED)
            host.until(lambda: b"more" in output(read), "it runs")
        hostile.ask(PAUSE, name("one"))
        hostile.ask(RESUME, name("one"))
        hostile.destroy()


def test_a_paused_sandbox_is_given_no_command(hostile: Gateway) -> None:
    with printing(hostile), Path(os.devnull).open("r+b") as null:
        hostile.ask(PAUSE, name("one"))
        with pytest.raises(Refused) as refused:
            hostile.ask(EXECUTE, command(2, ("true",)), [null.fileno()] * 3)
        assert (refused.value.errno, refused.value.detail) == (errno.EBUSY, "the sandbox is paused")
        hostile.destroy()


def test_a_worker_that_does_not_hold_still_costs_its_own_sandbox_the_pause_and_nobody_else_anything(
    launched: Launched, hostile: Gateway, honest: Gateway
) -> None:
    with printing(hostile) as (owner, read):
        worker = worker_of(launched, owner)
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        pause = hostile.post(PAUSE, name("one"))
        with honest.create(plan("meanwhile")) as other:
            assert honest.run(other, 1, "echo", "x", sandbox_id="meanwhile") == (b"x\n", 0)
            honest.ask(PAUSE, name("meanwhile"))
            honest.destroy("meanwhile")
        with pytest.raises(Refused) as refused:
            hostile.answer(pause)
        assert (refused.value.step, refused.value.errno) == ("pause", errno.ETIMEDOUT)
        assert time.monotonic() - began > 1.9
        host.until(lambda: b"more" in output(read), "it runs as before")
        os.kill(worker, signal.SIGCONT)
        hostile.ask(PAUSE, name("one"))
        hostile.destroy()


def test_a_destroy_answers_the_pause_that_is_under_way(launched: Launched, hostile: Gateway) -> None:
    with printing(hostile) as (owner, _):
        os.kill(worker_of(launched, owner), signal.SIGSTOP)
        pause, destroy = hostile.post(PAUSE, name("one")), hostile.post(DESTROY, name("one"))
        hostile.answer(destroy)
        with pytest.raises(Refused) as refused:
            hostile.answer(pause)
        assert (refused.value.step, refused.value.errno) == ("pause", errno.ESRCH)


@pytest.mark.parametrize("kind", [PAUSE, RESUME])
def test_only_its_own_sandboxes_can_be_paused(hostile: Gateway, honest: Gateway, kind: int) -> None:
    for sandbox_id in ("honest", "nobody"):
        with pytest.raises(Refused) as refused:
            hostile.ask(kind, name(sandbox_id))
        assert refused.value.errno == errno.ENOENT


def test_a_gateway_that_disconnects_takes_its_paused_sandbox_with_it(launched: Launched, honest: Gateway) -> None:
    with Gateway(launched[0].socket) as gateway, printing(gateway, "left") as (owner, _):
        uid = host.uids_of(worker_of(launched, owner))[0]
        gateway.ask(PAUSE, name("left"))
        gateway.socket.close()
        host.until(lambda: not host.processes_of(uid), "all of it ends")
