from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.core.errors import BackendUnavailable, CapacityExceeded, Conflict, IdempotencyMismatch
from app.core.idempotency import IdempotencyBounds, IdempotencyStore, StoredAnswer
from tests.unit.core.support import no_tasks_left, steps


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Works:
    """`work(...)` gives what `once` calls; `begun` counts."""

    def __init__(self) -> None:
        self.begun = 0

    def work(
        self, content: str = "done", *, lasting: bool = True, gate: asyncio.Event | None = None, size: int = 1
    ) -> Callable[[], Awaitable[StoredAnswer[str]]]:
        async def carried_out() -> StoredAnswer[str]:
            self.begun += 1
            await (gate.wait() if gate is not None else asyncio.sleep(0))
            return StoredAnswer(content, size, lasting)

        return carried_out


def store(keys: int = 100, size: int = 100, seconds: float = 10) -> tuple[IdempotencyStore[str], Works, Clock]:
    clock = Clock()
    return IdempotencyStore(IdempotencyBounds(keys, size, seconds), clock), Works(), clock


async def test_the_first_answer_is_repeated_until_its_time_is_over() -> None:
    answers, works, clock = store()
    assert await answers.once(b"k", b"d", works.work("first")) == (StoredAnswer("first", 1, lasting=True), False)
    clock.now = 9.9
    assert await answers.once(b"k", b"d", works.work("second")) == (StoredAnswer("first", 1, lasting=True), True)
    clock.now = 10
    assert (await answers.once(b"k", b"d", works.work("third")))[0].content == "third"
    assert works.begun == 2


async def test_keys_are_apart() -> None:
    answers, works, _ = store()
    assert (await answers.once(b"k", b"d", works.work("one")))[0].content == "one"
    assert (await answers.once(b"l", b"d", works.work("two")))[0].content == "two"


async def test_another_digest_is_a_mismatch_while_it_is_under_way_and_after() -> None:
    answers, works, _ = store()
    gate = asyncio.Event()
    first = asyncio.ensure_future(answers.once(b"k", b"d", works.work(gate=gate)))
    await steps(2)
    for _ in range(2):
        with pytest.raises(IdempotencyMismatch):
            await answers.once(b"k", b"other", works.work())
        gate.set()
        await first
    assert works.begun == 1


async def test_fifty_at_once_share_one() -> None:
    answers, works, _ = store()
    found = await asyncio.gather(*(answers.once(b"k", b"d", works.work(str(n))) for n in range(50)))
    assert {answer.content for answer, _ in found} == {"0"}
    assert [repeated for _, repeated in found] == [False] + [True] * 49
    assert works.begun == 1


async def test_the_work_goes_on_without_whoever_began_it() -> None:
    answers, works, _ = store()
    gate = asyncio.Event()
    first = asyncio.ensure_future(answers.once(b"k", b"d", works.work("first", gate=gate)))
    await steps(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.ensure_future(answers.once(b"k", b"d", works.work("second")))
    await steps(2)
    gate.set()
    assert (await second)[0].content == "first"


async def test_an_answer_that_does_not_last_is_given_to_all_who_wait_and_frees_the_key() -> None:
    answers, works, _ = store()
    both = await asyncio.gather(*(answers.once(b"k", b"d", works.work("no", lasting=False)) for _ in range(2)))
    assert [answer.content for answer, _ in both] == ["no", "no"]
    assert (await answers.once(b"k", b"other", works.work("yes")))[0].content == "yes"


async def test_an_error_is_told_to_all_who_wait_and_frees_the_key() -> None:
    answers, works, _ = store()

    async def failing() -> StoredAnswer[str]:
        await asyncio.sleep(0)
        raise BackendUnavailable("process", "gone")

    both = await asyncio.gather(*(answers.once(b"k", b"d", failing) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in both] == [BackendUnavailable] * 2
    assert (await answers.once(b"k", b"d", works.work("yes")))[0].content == "yes"


async def test_beyond_the_number_the_oldest_key_is_forgotten_and_never_one_under_way() -> None:
    answers, works, _ = store(keys=2)
    gate = asyncio.Event()
    under_way = asyncio.ensure_future(answers.once(b"slow", b"d", works.work("slow", gate=gate)))
    await steps(1)
    for key in (b"a", b"b"):
        await answers.once(key, b"d", works.work())
    assert (await answers.once(b"b", b"d", works.work()))[1]
    assert not (await answers.once(b"a", b"d", works.work()))[1]
    gate.set()
    assert (await under_way)[0].content == "slow"


async def test_a_store_full_of_works_refuses_until_one_ends() -> None:
    answers, works, _ = store(keys=1)
    gate = asyncio.Event()
    under_way = asyncio.ensure_future(answers.once(b"a", b"d", works.work(gate=gate)))
    await steps(1)
    with pytest.raises(CapacityExceeded):
        await answers.once(b"b", b"d", works.work())
    gate.set()
    await under_way
    assert not (await answers.once(b"b", b"d", works.work()))[1]


async def test_beyond_the_bytes_the_oldest_answer_goes_and_its_work_is_not_done_again() -> None:
    answers, works, clock = store(size=10)
    for key in (b"a", b"b"):
        await answers.once(key, b"d", works.work(size=6))
    with pytest.raises(Conflict):
        await answers.once(b"a", b"d", works.work())
    assert (await answers.once(b"b", b"d", works.work()))[1]
    assert (await answers.once(b"large", b"d", works.work("large", size=11)))[0].content == "large"
    for key in (b"large", b"b"):
        with pytest.raises(Conflict):
            await answers.once(key, b"d", works.work())
    assert works.begun == 3
    clock.now = 10
    assert not (await answers.once(b"a", b"d", works.work()))[1]


async def test_bytes_are_given_back_with_their_keys() -> None:
    answers, works, clock = store(keys=2, size=10)
    for number in range(20):
        await answers.once(b"%d" % number, b"d", works.work(size=5))
    assert (await answers.once(b"18", b"d", works.work()))[1]
    clock.now = 10
    for key in (b"x", b"y"):
        await answers.once(key, b"d", works.work(size=5))
    assert (await answers.once(b"x", b"d", works.work()))[1]


async def test_closing_ends_what_is_under_way() -> None:
    answers, works, _ = store()
    waiting = [asyncio.ensure_future(answers.once(b"k", b"d", works.work(gate=asyncio.Event()))) for _ in range(2)]
    await steps(2)
    await answers.aclose()
    for one in waiting:
        with pytest.raises(asyncio.CancelledError):
            await one
    await no_tasks_left()


async def test_one_client_pushes_no_key_and_no_answer_of_another_out() -> None:
    answers, works = IdempotencyStore[str](IdempotencyBounds(8, 160, 10), Clock(), shared=True), Works()
    await answers.once(b"mine", b"d", works.work("mine", size=10), "a")
    for number in range(20):
        await answers.once(b"%d" % number, b"d", works.work(size=10), "b")
    assert (await answers.once(b"mine", b"d", works.work("again"), "a"))[0].content == "mine"
    assert works.begun == 21
    assert (await answers.once(b"19", b"d", works.work(), "b"))[1] is True
    assert (await answers.once(b"16", b"d", works.work(), "b"))[1] is True  # half of what the other leaves: four keys
    assert (await answers.once(b"15", b"d", works.work(), "b"))[1] is False


async def test_a_client_whose_share_is_under_way_is_refused_and_another_is_not() -> None:
    answers, works, gate = (
        IdempotencyStore[str](IdempotencyBounds(4, 80, 10), Clock(), shared=True),
        Works(),
        asyncio.Event(),
    )
    waiting = [asyncio.create_task(answers.once(b"%d" % n, b"d", works.work(gate=gate), "a")) for n in range(2)]
    await steps(2)
    with pytest.raises(CapacityExceeded, match=r"this client has 2 of the service's 4 .* may have at most 2 now"):
        await answers.once(b"2", b"d", works.work(), "a")
    await answers.once(b"3", b"d", works.work(), "b")
    gate.set()
    await asyncio.gather(*waiting)


async def test_an_answer_that_is_not_kept_holds_nothing() -> None:
    answers, works = IdempotencyStore[str](IdempotencyBounds(2, 10, 10), Clock()), Works()
    for number in range(5):
        await answers.once(b"%d" % number, b"d", works.work(lasting=False), "a")
    await answers.once(b"large", b"d", works.work(size=11), "a")
    with pytest.raises(Conflict):
        await answers.once(b"large", b"d", works.work(), "a")
    assert (answers._keys.used, answers._bytes.used) == (1, 0)
