"""Spill: one file without a name for each sandbox, and a share of one budget."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.errors import CapacityExceeded
from app.core.limits import MIB
from app.spill import BLOCK, GROWTH, INLINE, SpilledOutput, SpillFile, SpillFolder
from tests.null_backend import pattern

STEP = GROWTH * BLOCK


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SpillFolder]:
    made = SpillFolder(tmp_path, 16 * STEP)
    yield made
    made.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def stored(output: SpilledOutput, end: int) -> bytes:
    return b"" if output.start == end else output.read(output.start, end - output.start)


def fill(file: SpillFile, size: int, capacity: int = 64 * STEP) -> SpilledOutput:
    output = file.open(capacity)
    for offset in range(0, size, STEP):
        output.write(offset, pattern(min(STEP, size - offset), offset))
    return output


def test_a_spill_file_has_no_name_and_is_nobody_elses(folder: SpillFolder, tmp_path: Path) -> None:
    file = folder.of("a")
    output = fill(file, 5)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(file.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(file.fd)
    assert output.read(0, 100) == pattern(5)
    output.close()


def test_all_output_of_a_sandbox_takes_one_descriptor_and_none_at_the_end(folder: SpillFolder) -> None:
    before = descriptors()
    file = folder.of("a")
    outputs = [fill(file, 100) for _ in range(50)]
    assert descriptors() == before + 1
    for output in outputs[:-1]:
        output.close()
    assert outputs[-1].read(0, 100) == pattern(100)
    outputs[-1].close()
    assert descriptors() == before
    assert folder.budget.used == 0


def test_a_large_file_is_given_back_by_another_thread(
    folder: SpillFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    close = os.close

    def noted(descriptor: int) -> None:
        closed.append(threading.current_thread().name)
        close(descriptor)

    monkeypatch.setattr(os, "close", noted)
    large = SpillFolder(tmp_path, 64 * MIB)
    for size in (INLINE, INLINE + STEP):
        fill(large.of("a"), size, capacity=size).close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name == "close a spill file":
            thread.join()
    assert closed == [threading.current_thread().name, "close a spill file"]
    assert large.budget.used == 0
    large.close()


def test_output_that_ended_makes_room_for_newer_output_of_its_sandbox_the_oldest_first(folder: SpillFolder) -> None:
    file, other = folder.of("a"), folder.of("b")
    neighbour = fill(other, 3 * STEP)
    neighbour.seal()
    ended = [fill(file, 2 * STEP) for _ in range(3)]
    for output in ended:
        output.seal()
    running = fill(file, 3 * STEP)  # its share is 6 steps: half of what the neighbour leaves
    assert [output.start for output in ended] == [2 * STEP, 2 * STEP, 0]
    assert running.read(0, 3 * STEP) == pattern(3 * STEP)
    assert ended[2].read(0, 2 * STEP) == pattern(2 * STEP)
    assert neighbour.read(0, 3 * STEP) == pattern(3 * STEP)
    for output in (*ended, running, neighbour):
        output.close()
    assert folder.budget.used == 0


def test_one_sandbox_at_its_share_is_refused_by_name_and_others_go_on(folder: SpillFolder) -> None:
    greedy, other = folder.of("a"), folder.of("b")
    outputs = [fill(greedy, 2 * STEP) for _ in range(4)]
    with pytest.raises(CapacityExceeded, match="this sandbox has 0 of the service's 1 MiB of stored output") as refused:
        greedy.check()
    assert (refused.value.budget, refused.value.holder) == ("MiB of stored output", "sandbox")
    other.check()
    neighbour = fill(other, 2 * STEP)
    assert neighbour.read(0, 2 * STEP) == pattern(2 * STEP)
    outputs[0].seal()
    greedy.check()
    for output in (*outputs, neighbour):
        output.close()


def test_output_that_outgrows_the_share_keeps_its_last_bytes(folder: SpillFolder) -> None:
    output = fill(folder.of("a"), 20 * STEP + 7)
    assert 0 < output.start <= 20 * STEP + 7 - 7 * STEP
    assert stored(output, 20 * STEP + 7) == pattern(20 * STEP + 7)[output.start :]
    assert folder.budget.used == 8 * STEP
    output.close()


def test_output_for_which_there_is_no_block_is_refused_as_a_full_disk_refuses(folder: SpillFolder) -> None:
    file = folder.of("a")
    first, second = fill(file, 8 * STEP), file.open(MIB)
    with pytest.raises(OSError, match="budget for stored output") as error:
        second.write(0, b"x")
    assert error.value.errno == errno.ENOSPC
    second.close()
    assert first.read(0, STEP) == pattern(STEP)
    first.close()


def test_small_output_costs_one_block(folder: SpillFolder) -> None:
    file = folder.of("a")
    outputs = [fill(file, 6) for _ in range(GROWTH)]
    assert folder.budget.used == STEP
    for output in outputs:
        output.close()


def test_without_a_budget_nothing_is_stored_and_nobody_refused(tmp_path: Path) -> None:
    folder = SpillFolder(tmp_path, 0)
    file = folder.of("a")
    file.check()
    output = file.open(10)
    with pytest.raises(OSError, match="budget"):
        output.write(0, b"x")
    output.close()
    folder.close()


def test_a_file_that_was_cut_short_gives_what_it_has(folder: SpillFolder) -> None:
    file = folder.of("a")
    output = fill(file, 3 * BLOCK)
    os.ftruncate(file.fd, BLOCK + 1)
    assert output.read(0, 3 * BLOCK) == pattern(BLOCK + 1)
    assert output.read(2 * BLOCK, BLOCK) == b""
    output.close()


# --- against a model


@dataclass
class Written:
    output: SpilledOutput
    capacity: int
    begin: int  # the log had that many bytes before anything was stored
    whole: bytes = b""
    sealed: bool = False


deeds = st.one_of(
    st.tuples(st.just("open"), st.integers(1, 40 * BLOCK), st.integers(0, 3 * BLOCK)),
    st.tuples(st.just("write"), st.integers(0, 5), st.integers(1, 20 * BLOCK)),
    st.tuples(st.just("write"), st.integers(0, 5), st.integers(1, 200)),
    st.tuples(st.just("seal"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("close"), st.integers(0, 5), st.just(0)),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(deeds, max_size=60))
def test_every_output_reads_as_it_was_written(folder: SpillFolder, steps: list[tuple[str, int, int]]) -> None:
    file, logs = folder.of("a"), list[Written]()
    for deed, first, second in steps:
        if deed == "open":
            logs.append(Written(file.open(first), first, second))
        elif logs:
            log = logs[first % len(logs)]
            if deed == "write" and not log.sealed:
                at = log.begin + len(log.whole)
                data = pattern(min(second, log.capacity), at)
                try:
                    log.output.write(at, data)
                    log.whole += data
                except OSError:
                    log.output.close()
                    logs.remove(log)
            elif deed == "seal":
                log.output.seal()
                log.sealed = True
            elif deed == "close":
                log.output.close()
                logs.remove(log)
        for log in logs:
            end = log.begin + len(log.whole)
            if log.whole:
                assert max(log.begin, end - log.capacity) <= log.output.start <= end
                assert stored(log.output, end) == log.whole[log.output.start - log.begin :]
        assert folder.budget.used <= 8 * STEP
    for log in logs:
        log.output.close()
    assert (folder.budget.used, file.fd) == (0, -1)


# --- the folder


def test_the_folder_is_used_where_its_path_is_out_of_reach(tmp_path: Path) -> None:
    """As the gateway's is, once it has given up root."""
    (tmp_path / "a").mkdir()
    folder = SpillFolder(tmp_path / "a", 1000)
    (tmp_path / "a").rename(tmp_path / "b")
    folder.prove()
    folder.close()


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SpillFolder(tmp_path / "missing", 1)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        SpillFolder(tmp_path / "file", 1)


def test_an_error_of_the_disk_is_reported_and_a_used_up_budget_is_not(
    folder: SpillFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int | None]] = []
    folder.on_failure = lambda sandbox, error: said.append((sandbox, error.errno))
    full = folder.of("full")
    output = fill(full, 16 * STEP)
    with pytest.raises(OSError, match="budget"):
        full.open(STEP).write(0, bytes(STEP))
    assert said == []

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(OSError, match="Input/output"):
        output.read(output.start, 1)
    assert said == [("full", errno.EIO)]
    output.close()
    monkeypatch.setattr(os, "pwrite", fails)
    written = folder.of("written").open(STEP)
    with pytest.raises(OSError, match="Input/output"):
        written.write(0, b"x")
    written.close()
    monkeypatch.setattr(folder, "descriptor", fails)
    with pytest.raises(OSError, match="Input/output"):
        folder.of("made").open(STEP)
    assert said[1:] == [("written", errno.EIO), ("made", errno.EIO)]
