"""Viewers of a running execution, in any order of what can happen to them: they wait, are slow, are cut off and come
back, while bytes, holes and ends arrive and the spill folder, which is a real one, gets full. Held against a model that
is nothing but bytes. `test_output.py` and `test_follow.py` have the parts; here is the whole, with its wake-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.follow import Follower, Gap, Output
from app.core.models import Channel
from app.core.output import CHUNK, MEMORY_WINDOW, OutputLog
from app.spill import SpillFolder
from tests.null_backend import pattern

BUDGET = 3 * MEMORY_WINDOW  # of the folder, for both channels
LARGE = [CHUNK - 1, CHUNK + 1, 3 * CHUNK, MEMORY_WINDOW, MEMORY_WINDOW + 1, 5 * CHUNK]


@dataclass
class Scene:
    logs: dict[Channel, OutputLog]
    whole: dict[Channel, bytes] = field(default_factory=lambda: dict.fromkeys(Channel, b""))


class Viewer:
    """One client over all its connections, which believes nothing that it is told."""

    def __init__(self, scene: Scene, offset: int) -> None:
        self.scene = scene
        self.places = {channel: min(offset, log.total) for channel, log in scene.logs.items()}
        self.begin = dict(self.places)
        self.holes: set[tuple[Channel, int]] = set()
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

    def _take(self, item: Output | Gap) -> None:
        channel = item.channel
        place, log = self.places[channel], self.scene.logs[channel]
        if isinstance(item, Output):
            end = place + len(item.data)
            assert item.offset == place
            assert 0 < len(item.data) <= CHUNK
            assert item.data == self.scene.whole[channel][place:end]
            assert all((channel, hole) in self.holes for hole in log.holes if place <= hole < end), "a hole passed over"
            self.places[channel] = end
        elif item.end is None:
            assert item.begin == place
            assert place in log.holes
            self.holes.add((channel, place))
        else:
            assert item.begin == place < item.end <= log.total
            self.lost.add((channel, item.begin, item.end))
            self.places[channel] = item.end

    def check(self) -> None:
        if self.task is not None and self.task.done():
            self.task.result()  # what it found wrong
        if self.task is not None and self.reads.is_set():
            assert self.places == {channel: log.total for channel, log in self.scene.logs.items()}, "not woken"
            assert self.ended is all(log.closed for log in self.scene.logs.values())
        if self.missed_nothing_by_right:
            assert not self.lost, "a viewer that was never far behind missed something"

    def check_whole(self) -> None:
        """Once it has ended: every hole was told, or lay in what it was told is gone."""
        assert self.ended
        for channel, log in self.scene.logs.items():
            gone = [(begin, end) for lost, begin, end in self.lost if lost is channel]
            for hole in log.holes:
                told = (channel, hole) in self.holes or any(begin <= hole < end for begin, end in gone)
                assert told or hole < self.begin[channel]


async def turns() -> None:
    """Everything that is ready has run: a wake-up takes two turns of the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


ACTIONS = ["append", "append", "append", "view", "view", "tear", "stall", "cut", "connect", "close", "fill", "empty"]
STEPS = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from(Channel),
    st.one_of(st.integers(0, 300), st.sampled_from(LARGE)),
    st.integers(0, 3),
)


async def play(
    capacity: int, keep_first: bool, folder: SpillFolder, steps: list[tuple[str, Channel, int, int]]
) -> None:
    scene = Scene({channel: OutputLog(capacity, keep_first=keep_first, open_spill=folder.open) for channel in Channel})
    viewers: list[Viewer] = []
    hogged = 0
    for action, channel, size, number in steps:
        log = scene.logs[channel]
        some = viewers[number : number + 1]
        match action:
            case "append":
                data = pattern(size, log.total)
                scene.whole[channel] += data[: 0 if log.closed else capacity - log.total if keep_first else None]
                log.append(data)
                if size > min(capacity, MEMORY_WINDOW):
                    for viewer in viewers:
                        viewer.missed_nothing_by_right = False
            case "tear":
                log.tear()
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
                room = BUDGET - folder.used
                folder.take(room)
                hogged += room
            case "empty":
                folder.give_back(hogged)
                hogged = 0
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
        viewer.check_whole()
    for channel, log in scene.logs.items():
        assert log.sha256 == hashlib.sha256(scene.whole[channel]).hexdigest()
        assert not log._wakers, "a viewer that is gone is still woken"
        log.discard()
    folder.give_back(hogged)
    assert folder.used == 0, "spill that nobody gives back"


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.one_of(
        st.integers(1, 500), st.sampled_from([CHUNK, MEMORY_WINDOW, MEMORY_WINDOW + 1, 2 * MEMORY_WINDOW])
    ),
    keep_first=st.booleans(),
    steps=st.lists(STEPS, max_size=40),
)
def test_viewers_get_everything_once_or_are_told_whatever_happens(
    capacity: int, keep_first: bool, steps: list[tuple[str, Channel, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = SpillFolder(Path(name), BUDGET)
        try:
            asyncio.run(play(capacity, keep_first, folder, steps))
        finally:
            folder.close()
