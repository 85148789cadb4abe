"""Work that seldom waits shares the event loop by slices of processor time.

A loop over things that a client chose (entries of an archive, names of a directory, records of a list) may run for
seconds without one `await` that waits. It asks at each step whether its slice is over, and then lets everybody else go
first:

    slices = TimeSlices.of_loop()
    for item in items:
        if slices.over:
            await slices.next()

Work that is a callback and not a task, such as that for a connection's input, hands each of its slices to `add`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

SECONDS = 0.004  # of processor time; the longest that anybody waits for such work, however much of it there is


class TimeSlices:
    """There is one for each event loop. Waiting tasks get their slices in turn, one in each run through the loop. So
    ten tasks or connections delay the others by one slice at a time and not by ten. Processor time of the thread
    counts, so a task that waits for a processor has not used its slice. Time of other tasks counts too, which costs at
    most one run through the loop.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._waiting: deque[Callable[[], None]] = deque()

    @classmethod
    def of_loop(cls) -> TimeSlices:
        """The slices of the running loop. Raises RuntimeError outside of one."""
        loop = asyncio.get_running_loop()
        found = _slices.get(loop)
        if found is None:
            found = _slices[loop] = cls()
        return found

    @property
    def over(self) -> bool:
        return time.thread_time() >= self._until

    async def next(self) -> None:
        """Returns at the beginning of a new slice, after everything else that is ready has run once."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.add(partial(_begin, turn))
        await turn
        self._until = time.thread_time() + SECONDS

    def add(self, slice_: Callable[[], None]) -> None:
        """Runs a slice once, later. A slice that leaves work adds itself again."""
        self._waiting.append(slice_)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        """Gives a slice to the first that waits. The next one gets its slice in the next run through the loop."""
        try:
            self._waiting[0]()
        finally:
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._give)


def _begin(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # else it was cancelled
        turn.set_result(None)


_slices: WeakKeyDictionary[asyncio.AbstractEventLoop, TimeSlices] = WeakKeyDictionary()
