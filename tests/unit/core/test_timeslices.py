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


def test_each_loop_has_its_own() -> None:
    async def mine() -> TimeSlices:
        assert TimeSlices.of_loop() is TimeSlices.of_loop()
        return TimeSlices.of_loop()

    assert asyncio.run(mine()) is not asyncio.run(mine())
