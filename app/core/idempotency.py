"""Remembers answers by idempotency key, so that a request with a key is carried out once, however often it is sent."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.core.backend import settle
from app.core.budget import Budget
from app.core.errors import Conflict, IdempotencyMismatch

T = TypeVar("T")
Key = bytes
Digest = bytes


@dataclass(frozen=True, slots=True)
class IdempotencyBounds:
    """The operator's limits. `size`: bytes of all answers together."""

    keys: int = 50_000
    size: int = 64 * 1024 * 1024
    seconds: float = 86_400


@dataclass(frozen=True, slots=True)
class StoredAnswer(Generic[T]):
    """`size` is in bytes. If the answer is not `lasting`, the next try may have another one, so its key becomes
    free."""

    content: T
    size: int
    lasting: bool


@dataclass(frozen=True, slots=True)
class _Work(Generic[T]):
    digest: Digest
    task: asyncio.Task[StoredAnswer[T]]


@dataclass(frozen=True, slots=True)
class _Ended:
    digest: Digest
    until: float
    client: str


class IdempotencyStore(Generic[T]):
    """It has two bounds. At each the oldest is forgotten, and never a request that is under way. Beyond the number of
    keys a key is forgotten. Beyond the bytes only an answer is forgotten: its key still keeps the work from being done
    twice. Each client has a share of both, and loses only its own. If new keys were refused instead, a day of ordinary
    use would lock everybody out. Retries come within minutes.
    """

    def __init__(
        self, most: IdempotencyBounds, clock: Callable[[], float] = time.monotonic, *, shared: bool = False
    ) -> None:
        """With `shared` there are several clients."""
        self._seconds, self._clock = most.seconds, clock
        self._keys = Budget("requests with an idempotency key at one time", most.keys, "client", shared=shared)
        self._bytes = Budget("bytes of answers", most.size, "client", shared=shared)
        self._works: dict[Key, _Work[T]] = {}
        # All in the order of their ends; the second and third by client.
        self._ended: dict[Key, _Ended] = {}
        self._of: defaultdict[str, dict[Key, None]] = defaultdict(dict)
        self._stored: defaultdict[str, dict[Key, StoredAnswer[T]]] = defaultdict(dict)

    async def once(
        self, key: Key, digest: Digest, work: Callable[[], Awaitable[StoredAnswer[T]]], client: str = ""
    ) -> tuple[StoredAnswer[T], bool]:
        """Returns the key's answer, and whether it is a repetition. `work` is called for the first request and goes on
        even if all callers are cancelled. Requests that come meanwhile get its answer too, or its error.

        Raises IdempotencyMismatch for another digest, Conflict when the answer is no longer stored, CapacityExceeded.
        """
        self._forget_expired()
        known = self._works.get(key) or self._ended.get(key)
        if known is not None and known.digest != digest:
            raise IdempotencyMismatch
        if isinstance(known, _Ended):
            return self._repeat(key, known.client), True
        begun = known or self._begin(key, digest, work, client)
        return await asyncio.shield(begun.task), known is not None

    def _repeat(self, key: Key, client: str) -> StoredAnswer[T]:
        if key not in self._stored[client]:
            raise Conflict("the request with this Idempotency-Key was carried out, but its answer is no longer stored")
        return self._stored[client][key]

    def _begin(self, key: Key, digest: Digest, work: Callable[[], Awaitable[StoredAnswer[T]]], client: str) -> _Work[T]:
        while not self._keys.fits(client) and self._of[client]:
            self._forget(next(iter(self._of[client])))
        self._keys.take(client)
        task = asyncio.get_running_loop().create_task(self._carry_out(key, digest, work, client))
        begun = self._works[key] = _Work(digest, task)
        return begun

    async def _carry_out(
        self, key: Key, digest: Digest, work: Callable[[], Awaitable[StoredAnswer[T]]], client: str
    ) -> StoredAnswer[T]:
        lasting = False
        try:
            answer = await work()
            lasting = answer.lasting
        finally:
            del self._works[key]
            if not lasting:
                self._keys.give_back(client)
        if lasting:
            self._keep(key, digest, answer, client)
        return answer

    def _keep(self, key: Key, digest: Digest, answer: StoredAnswer[T], client: str) -> None:
        self._ended[key] = _Ended(digest, self._clock() + self._seconds, client)
        self._of[client][key] = None
        while not self._bytes.fits(client, answer.size) and self._stored[client]:
            self._drop_answer(next(iter(self._stored[client])), client)
        if self._bytes.fits(client, answer.size):
            self._bytes.take(client, answer.size)
            self._stored[client][key] = answer

    def _drop_answer(self, key: Key, client: str) -> None:
        self._bytes.give_back(client, self._stored[client].pop(key).size)

    def _forget(self, key: Key) -> None:
        client = self._ended.pop(key).client
        del self._of[client][key]
        self._keys.give_back(client)
        if key in self._stored[client]:
            self._drop_answer(key, client)

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._ended:
            key, oldest = next(iter(self._ended.items()))
            if oldest.until > now:
                return
            self._forget(key)

    async def aclose(self) -> None:
        """Cancels the work that is under way, and waits for its end."""
        for work in tuple(self._works.values()):
            work.task.cancel()
            await settle(work.task)
