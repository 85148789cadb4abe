"""Viewers of a running execution, in any order of what can happen to them: they wait, are slow, are cut off and come
back, while bytes, gaps and ends arrive and the spill folder, which is a real one, gets full. Held against a model that
is nothing but bytes. `test_output.py` and `test_follow.py` have the parts; here is the whole, with its wake-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.follow import Follower, OutputGap, OutputPiece
from app.core.models import Channel
from app.core.output import CHUNK, MEMORY_WINDOW, OutputLog
from app.spill import SpillFolder

BUDGET = 6 * MEMORY_WINDOW  # of the folder, for both channels
STREAM = Random(1).randbytes(1024 * 1024)  # what is written is a part of it: no two places look the same
LARGE = [CHUNK - 1, CHUNK + 1, 3 * CHUNK, MEMORY_WINDOW, MEMORY_WINDOW + 1, 5 * CHUNK]


@dataclass
class Scene:
    logs: dict[Channel, OutputLog]
    whole: dict[Channel, bytes] = field(default_factory=lambda: dict.fromkeys(Channel, b""))


class Viewer:
    """One client over all its connections, which believes nothing that it is told."""

    def __init__(self, scene: Scene, somewhere: int) -> None:
        self.scene = scene
        self.places = {channel: somewhere % (log.total + 1) for channel, log in scene.logs.items()}
        self.begin = dict(self.places)
        self.gaps: set[tuple[Channel, int]] = set()
        self.lost: set[tuple[Channel, int, int]] = set()
        self.reads = asyncio.Event()  # while it is not set, the client's socket is full
        self.ended = False
        self.missed_nothing_by_right = all(self.places[c] >= log.start for c, log in scene.logs.items())
        self.task: asyncio.Task[None] | None = None

    def connect(self) -> None:
        self.reads.set()
        if self.task is None and not self.ended:
            self.task = asyncio.create_task(self._view())

    async def cut(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    async def _view(self) -> None:
        with Follower(self.scene.logs, self.places) as follower:
            while True:
                await self.reads.wait()
                item = await follower.next()
                if item is None:
                    self.ended = True
                    return
                self._take(item)

    def _take(self, item: OutputPiece | OutputGap) -> None:
        channel = item.channel
        place, log = self.places[channel], self.scene.logs[channel]
        if isinstance(item, OutputPiece):
            end = place + len(item.data)
            assert item.offset == place
            assert 0 < len(item.data) <= CHUNK
            assert item.data == self.scene.whole[channel][place:end]
            assert all((channel, gap) in self.gaps for gap in log.gaps if place <= gap < end), "a gap passed over"
            self.places[channel] = end
        elif item.end is None:
            assert item.begin == place
            assert place in log.gaps
            self.gaps.add((channel, place))
        else:
            assert item.begin == place < item.end <= log.total
            self.lost.add((channel, item.begin, item.end))
            self.places[channel] = item.end

    def _untold(self) -> list[tuple[Channel, int]]:
        """Holes that it was not told, and that do not lie in what it was told is gone."""
        gaps = [(channel, gap) for channel, log in self.scene.logs.items() for gap in log.gaps]
        return [
            (channel, gap)
            for channel, gap in gaps
            if gap >= self.begin[channel]
            and (channel, gap) not in self.gaps
            and not any(lost is channel and begin <= gap < end for lost, begin, end in self.lost)
        ]

    def check(self) -> None:
        if self.task is not None and self.task.done():
            self.task.result()  # what it found wrong
        if self.task is not None and self.reads.is_set():
            assert self.places == {channel: log.total for channel, log in self.scene.logs.items()}, "not woken"
            assert self._untold() == [], "not told"
            assert self.ended is all(log.closed for log in self.scene.logs.values())
        if self.missed_nothing_by_right:
            assert not self.lost, "a viewer that was never far behind missed something"


async def turns() -> None:
    """Everything that is ready has run: a wake-up takes two turns of the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


ACTIONS = ["append"] * 4 + ["lose"] * 2 + ["view"] * 3 + ["stall", "cut", "connect", "fill", "empty", "leave"]
STEPS = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from([Channel.STDOUT, Channel.STDOUT, Channel.STDERR]),
    st.one_of(st.integers(0, 300), st.sampled_from(LARGE)),
    st.integers(0, 2),
)


END = ("close", Channel.STDOUT, 0, 0)  # one channel may end long before the other


async def play(
    capacity: int, keep_first: bool, folder: SpillFolder, steps: list[tuple[str, Channel, int, int]]
) -> None:
    file = folder.of("a")
    scene = Scene({channel: OutputLog(capacity, keep_first=keep_first, open_spill=file.open) for channel in Channel})
    viewers: list[Viewer] = []
    hogs = [f"hog {number}" for number in range(20)]
    for action, channel, size, number in steps:
        log = scene.logs[channel]
        some = viewers[number : number + 1]
        match action:
            case "append":
                begin = log.total % (len(STREAM) - max(LARGE))
                data = STREAM[begin : begin + size]
                scene.whole[channel] += data[: 0 if log.closed else capacity - log.total if keep_first else None]
                log.append(data)
                if size > min(capacity, MEMORY_WINDOW):
                    for viewer in viewers:
                        viewer.missed_nothing_by_right = False
            case "lose":
                log.add_gap()
            case "close":
                log.close()
            case "view":
                viewers.append(Viewer(scene, size))
                viewers[-1].connect()
            case "stall" | "cut" if some:
                some[0].missed_nothing_by_right = False
                some[0].reads.clear()
                if action == "cut":
                    await some[0].cut()
            case "connect" if some:
                some[0].connect()
            case "fill":
                for hog in hogs:
                    folder.budget.take(hog, folder.budget.share(hog) - folder.budget.held(hog))
            case "empty":
                for hog in hogs:
                    folder.budget.give_back(hog, folder.budget.held(hog))
            case "leave" if log.closed:
                log.leave_memory()
            case _:
                pass
        await turns()
        for viewer in viewers:
            viewer.check()
    for log in scene.logs.values():
        log.close()
    for viewer in viewers:
        viewer.connect()
    await turns()
    for viewer in viewers:
        viewer.check()
        assert viewer.ended
    for channel, log in scene.logs.items():
        assert log.sha256 == hashlib.sha256(scene.whole[channel]).hexdigest()
        assert not log._wakers, "a viewer that is gone is still woken"
        log.discard()
    for hog in hogs:
        folder.budget.give_back(hog, folder.budget.held(hog))
    assert folder.budget.used == 0, "spill that nobody gives back"


SPILL_IS_LOST = [
    ("append", Channel.STDOUT, 5 * CHUNK, 0),
    ("fill", Channel.STDOUT, 0, 0),
    ("append", Channel.STDOUT, 3 * CHUNK, 0),
    ("view", Channel.STDOUT, 0, 0),
]


@settings(max_examples=100)
@given(
    capacity=st.one_of(
        st.integers(1, 500), st.sampled_from([CHUNK, MEMORY_WINDOW, MEMORY_WINDOW + 1, 2 * MEMORY_WINDOW])
    ),
    keep_first=st.booleans(),
    steps=st.lists(STEPS, min_size=20, max_size=60),
    ends=st.integers(0, 60),
)
@example(capacity=2 * MEMORY_WINDOW, keep_first=False, steps=SPILL_IS_LOST, ends=4)
def test_viewers_get_everything_once_or_are_told_whatever_happens(
    capacity: int, keep_first: bool, steps: list[tuple[str, Channel, int, int]], ends: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = SpillFolder(Path(name), BUDGET)
        try:
            asyncio.run(play(capacity, keep_first, folder, [*steps[:ends], END, *steps[ends:]]))
        finally:
            folder.close()
