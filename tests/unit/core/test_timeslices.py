"""Many tasks of endless work hold others up for one slice at a time, and none of them starves."""

from __future__ import annotations

import asyncio
import time

from app.core.timeslices import SECONDS, TimeSlices


async def test_many_tasks_together_use_one_slice_in_each_run_through_the_loop() -> None:
    loop = asyncio.get_running_loop()
    runs: list[float] = []  # processor time of each run through the loop
    steps = [0] * 8
    done = asyncio.Event()

    def beat(last: float) -> None:
        now = time.thread_time()
        runs.append(now - last)
        if not done.is_set():
            loop.call_soon(beat, now)

    async def work(number: int) -> None:
        slices = TimeSlices.of_loop()
        while not done.is_set():
            if slices.over:
                await slices.next()
            steps[number] += 1
            if min(steps) > 2000:
                done.set()

    loop.call_soon(beat, time.thread_time())
    await asyncio.gather(*(work(number) for number in range(len(steps))))
    assert len(runs) > len(steps)
    assert sorted(runs)[len(runs) * 9 // 10] < 3 * SECONDS
    assert min(steps) * 20 > max(steps)


async def test_turn_that_was_cancelled_is_given_to_the_next() -> None:
    slices = TimeSlices.of_loop()
    first, second = (asyncio.create_task(slices.next()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert not slices.over
    assert first.cancelled()


async def test_slices_take_turns_and_others_run_between_them() -> None:
    loop = asyncio.get_running_loop()
    slices, left = TimeSlices.of_loop(), {"a": 3, "b": 3}
    order: list[str] = []
    done = asyncio.Event()

    def slice_of(name: str) -> None:
        order.append(name)
        left[name] -= 1
        if left[name]:
            slices.add(lambda: slice_of(name))
        elif not any(left.values()):
            done.set()

    def other() -> None:
        order.append("other")
        if not done.is_set():
            loop.call_soon(other)

    slices.add(lambda: slice_of("a"))
    slices.add(lambda: slice_of("b"))
    loop.call_soon(other)
    await done.wait()
    assert [name for name in order if name != "other"] == ["a", "b", "a", "b", "a", "b"]
    assert all("other" in order[at : at + 2] for at in range(len(order) - 2))


async def test_a_slice_that_fails_leaves_the_others_their_turn() -> None:
    loop = asyncio.get_running_loop()
    failed: list[object] = []
    loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
    slices, done = TimeSlices.of_loop(), asyncio.Event()

    def fails() -> None:
        raise ValueError("a slice")

    slices.add(fails)
    slices.add(done.set)
    await asyncio.wait_for(done.wait(), 60)
    assert [str(error) for error in failed] == ["a slice"]


def test_each_loop_has_its_own() -> None:
    async def mine() -> TimeSlices:
        assert TimeSlices.of_loop() is TimeSlices.of_loop()
        return TimeSlices.of_loop()

    assert asyncio.run(mine()) is not asyncio.run(mine())
