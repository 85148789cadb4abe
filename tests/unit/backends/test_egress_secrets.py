"""Secrets on their way from the gateway to the egress process, which the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.backends.egress_link import EgressLink
from app.core.network_log import NetworkLog
from app.core.operator_secrets import OperatorSecret, OperatorSecrets
from app.core.secrets import Secret, SecretValue
from app.egress.protocol import KnownSecret, NetworkOpened, NetworkSecret, receive
from tests.unit.backends.test_egress_link import RULES, FakeSockets, Played

OWN = Secret("TOKEN", ("a.test",), SecretValue("own"), placeholder="bulkhead_secret_1")
OPERATORS = Secret("LLM", ("a.test", "b.test"), source="llm", placeholder="bulkhead_secret_2")
SENT_OWN = NetworkSecret("TOKEN", "bulkhead_secret_1", "own", ("a.test",))


def sent(value: str, *hosts: str) -> NetworkSecret:
    return NetworkSecret("LLM", "bulkhead_secret_2", value, hosts)


def listed(value: str, *hosts: str) -> dict[str, OperatorSecret]:
    return {"llm": OperatorSecret(SecretValue(value), hosts)}


class Stage:
    def __init__(self, path: Path) -> None:
        self.played = Played(path)
        self.operators = OperatorSecrets(listed("one", "a.test", "b.test"))
        self.link = EgressLink(path, lambda *_: None, self.operators)
        self.sockets = FakeSockets()

    async def opened(self, *secrets: Secret) -> tuple[NetworkSecret, ...]:
        """Returns what the egress process was told."""
        opening = self.link.open("process", "one", RULES, self.sockets, NetworkLog(), secrets)
        task = asyncio.create_task(opening)
        await self.played.accept()
        _, setup = await self.played.hear_opening()
        self.played.say(NetworkOpened("one"))
        await task
        return setup.secrets

    async def change(self, found: dict[str, OperatorSecret]) -> NetworkSecret:
        self.operators.replace(found)
        order, descriptors = await self.played.hear()
        assert isinstance(order, KnownSecret)
        assert (order.sandbox, descriptors) == ("one", [])
        return order.secret


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path / "egress.sock")
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        made.link.aclose()
        made.played.hang_up()
        made.played.listener.close()
        made.sockets.close()


async def test_the_egress_process_gets_the_values(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        assert await here.opened(OWN, OPERATORS) == (SENT_OWN, sent("one", "a.test", "b.test"))


async def test_a_running_sandbox_gets_what_the_operator_changes(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened(OWN, OPERATORS)
        assert await here.change(listed("two", "b.test", "c.test")) == sent("two", "b.test")
        assert await here.change({}) == sent("")
        assert await here.change(listed("three", "a.test")) == sent("three", "a.test")


async def test_another_egress_process_gets_them_as_they_are_now(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened(OWN, OPERATORS)
        here.played.hang_up()
        here.operators.replace(listed("two", "a.test"))
        await here.played.accept()
        _, setup = await here.played.hear_opening()
        assert setup.secrets == (SENT_OWN, sent("two", "a.test"))


async def test_a_sandbox_that_has_ended_gets_nothing_more(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened(OPERATORS)
        here.link.close("one")
        await here.played.hear()
        here.operators.replace(listed("two", "a.test"))
        assert here.played.connection is not None
        with pytest.raises(BlockingIOError):
            receive(here.played.connection)
