"""Connections of raw rules, whose bytes pass unread."""

from __future__ import annotations

import pytest

from tests.unit.egress.support import GIVEN, HOST, NAME, echo, site

RAW = [{"host": NAME, "raw": True}]


async def test_bytes_pass_both_ways_and_the_end_too() -> None:
    async with site(echo, rules=RAW) as at:
        assert await at.ask(b"\0anything") == b"\0anything"
        event = await at.gateway.event()
        assert (event["verdict"], event["name"], event["address"], event["port"]) == ("allowed", NAME, HOST, at.port)
        assert (event["bytes_sent"], event["bytes_received"]) == (9, 9)
        assert event["rule"] == f"{NAME}:{at.port} raw"


async def test_address_without_a_rule_is_reset() -> None:
    async with site(echo, rules=[{"host": "203.0.113.0/24", "raw": True}], names={"other.example": "127.99.0.1"}) as at:
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x")
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"], event["address"]) == ("refused", "rule", GIVEN)
