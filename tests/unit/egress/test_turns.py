"""Sandboxes take turns, however many of their sockets are ready."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack, closing
from functools import partial

from app.egress.turns import SECONDS, SandboxTurns

SOCKETS = 200


async def test_sandbox_with_one_ready_socket_is_served_as_often_as_one_with_many() -> None:
    with ExitStack() as stack:
        greedy, modest = (stack.enter_context(closing(SandboxTurns())) for _ in range(2))
        served: dict[int, int] = {}
        done = asyncio.Event()
        modest_served = 0

        def ready() -> socket.socket:
            left, right = socket.socketpair()
            stack.enter_context(left)
            left.send(b"x")
            return stack.enter_context(right)

        def serve_greedy(fd: int) -> None:
            served[fd] = served.get(fd, 0) + 1

        def serve_modest() -> None:
            nonlocal modest_served
            modest_served += 1
            if modest_served == 500:
                done.set()

        for _ in range(SOCKETS):
            fd = ready().fileno()
            greedy.read(fd, lambda fd=fd: serve_greedy(fd))  # type: ignore[misc]
        modest.read(ready().fileno(), serve_modest)
        await asyncio.wait_for(done.wait(), 60)
        assert sum(served.values()) <= 4 * (modest_served + 2)
        assert len(served) == SOCKETS  # and the sockets of one sandbox take turns
        assert max(served.values()) <= min(served.values()) + 2


async def test_sandbox_whose_work_is_long_gets_no_second_piece_in_its_turn() -> None:
    with ExitStack() as stack:
        greedy, modest = (stack.enter_context(closing(SandboxTurns())) for _ in range(2))
        order: list[str] = []
        done = asyncio.Event()

        def work(name: str, seconds: float) -> None:
            until = time.thread_time() + seconds
            order.append(name)
            if order.count("modest") == 100:
                done.set()
            while time.thread_time() < until:
                pass

        for turns, name, seconds in ((greedy, "greedy", 0.0005), (greedy, "greedy", 0.0005), (modest, "modest", 0.0)):
            left, right = (stack.enter_context(end) for end in socket.socketpair())
            left.send(b"x")
            turns.read(right.fileno(), partial(work, name, seconds))
        await asyncio.wait_for(done.wait(), 60)
        assert order.count("greedy") <= 30  # of 100: one in a turn, in which the other has four


async def test_tasks_of_two_sandboxes_take_turns() -> None:
    with ExitStack() as stack:
        greedy, modest = (stack.enter_context(closing(SandboxTurns())) for _ in range(2))
        order: list[str] = []

        async def work(name: str, turns: SandboxTurns) -> None:
            for _ in range(20):
                await turns.next()
                order.append(name)

        await asyncio.gather(*(work("greedy", greedy) for _ in range(10)), work("modest", modest))
        assert order[:60].count("modest") == 20


def work_for_a_slice() -> None:
    until = time.thread_time() + SECONDS
    while time.thread_time() < until:
        pass


async def test_task_that_an_event_wakes_up_has_the_slice_of_that_turn() -> None:
    with closing(SandboxTurns()) as turns, ExitStack() as stack:
        left, right = (stack.enter_context(end) for end in socket.socketpair())
        work_for_a_slice()
        assert turns.over
        left.send(b"x")
        await turns.readable(right.fileno())
        assert not turns.over
        work_for_a_slice()
        assert turns.over


async def test_event_gives_no_slice_while_a_task_of_the_sandbox_waits_for_one() -> None:
    with closing(SandboxTurns()) as turns:
        waiting = asyncio.create_task(turns.next())
        await asyncio.sleep(0)
        work_for_a_slice()
        turns._turn()
        assert turns.over
        await waiting
        assert not turns.over


async def test_failed_socket_that_nobody_waits_for_costs_nothing() -> None:
    with closing(SandboxTurns()) as turns:
        left, right = socket.socketpair()
        calls = 0

        def call() -> None:
            nonlocal calls
            calls += 1
            turns.read(right.fileno(), None)

        with right:
            turns.read(right.fileno(), call)
            left.close()
            for _ in range(20):
                await asyncio.sleep(0)
            assert calls == 1
            assert turns._epoll.poll(0) == []
            turns.forget(right.fileno())
