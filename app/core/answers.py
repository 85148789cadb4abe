"""Answers by idempotency key: what a key stands for is done once, however often and by whomever it is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.core.backend import settle
from app.core.errors import CapacityExceeded, Conflict, IdempotencyMismatch

T = TypeVar("T")
Key = bytes
Digest = bytes


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """The operator's numbers. `size`: bytes of all answers together."""

    keys: int = 50_000
    size: int = 64 * 1024 * 1024
    seconds: float = 86_400


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """`size` in bytes. Not `lasting`: it may be another one at the next try, so its key becomes free."""

    content: T
    size: int
    lasting: bool


@dataclass(frozen=True, slots=True)
class _Work(Generic[T]):
    digest: Digest
    task: asyncio.Task[Answer[T]]


@dataclass(frozen=True, slots=True)
class _Ended:
    digest: Digest
    until: float


class Answers(Generic[T]):
    """Bounded twice, and both times it is the oldest that goes, never what is under way. Beyond the number of keys a
    key is forgotten. Beyond the bytes only an answer is: its key still keeps the work from being done twice.

    To refuse new keys instead would let ordinary use of a day lock everybody out; retries come within minutes.
    """

    def __init__(self, most: KeptAnswers, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._works: dict[Key, _Work[T]] = {}
        self._ended: dict[Key, _Ended] = {}  # both in the order of their ends
        self._stored: dict[Key, Answer[T]] = {}
        self._size = 0

    async def once(self, key: Key, digest: Digest, work: Callable[[], Awaitable[Answer[T]]]) -> tuple[Answer[T], bool]:
        """The key's answer, and whether it is a repetition. `work` is called for the first to come and goes on whatever
        becomes of the callers; whoever comes meanwhile gets its answer too, or its error.

        Raises IdempotencyMismatch for another digest, Conflict when the answer is no longer stored, CapacityExceeded.
        """
        self._forget_expired()
        known = self._works.get(key) or self._ended.get(key)
        if known is not None and known.digest != digest:
            raise IdempotencyMismatch
        if isinstance(known, _Ended):
            return self._repeat(key), True
        begun = known or self._begin(key, digest, work)
        return await asyncio.shield(begun.task), known is not None

    def _repeat(self, key: Key) -> Answer[T]:
        if key not in self._stored:
            raise Conflict("the request with this key was carried out, and its answer is not stored any more")
        return self._stored[key]

    def _begin(self, key: Key, digest: Digest, work: Callable[[], Awaitable[Answer[T]]]) -> _Work[T]:
        if len(self._works) + len(self._ended) >= self._most.keys:
            if not self._ended:
                raise CapacityExceeded("requests with an idempotency key at one time", self._most.keys)
            self._forget(next(iter(self._ended)))
        task = asyncio.get_running_loop().create_task(self._carry_out(key, digest, work))
        begun = self._works[key] = _Work(digest, task)
        return begun

    async def _carry_out(self, key: Key, digest: Digest, work: Callable[[], Awaitable[Answer[T]]]) -> Answer[T]:
        try:
            answer = await work()
        finally:
            del self._works[key]
        if answer.lasting:
            self._keep(key, digest, answer)
        return answer

    def _keep(self, key: Key, digest: Digest, answer: Answer[T]) -> None:
        self._ended[key] = _Ended(digest, self._clock() + self._most.seconds)
        self._stored[key] = answer
        self._size += answer.size
        while self._size > self._most.size:
            self._drop_answer(next(iter(self._stored)))

    def _drop_answer(self, key: Key) -> None:
        self._size -= self._stored.pop(key).size

    def _forget(self, key: Key) -> None:
        del self._ended[key]
        if key in self._stored:
            self._drop_answer(key)

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._ended:
            key, oldest = next(iter(self._ended.items()))
            if oldest.until > now:
                return
            self._forget(key)

    async def aclose(self) -> None:
        """Cancels what is under way, and waits for it."""
        for work in tuple(self._works.values()):
            work.task.cancel()
            await settle(work.task)
