"""Let no skip hide: a feature that the host lacks is a skip with its reason, and a failure where CI demands it."""

from __future__ import annotations

import os

import pytest


def required(feature: str) -> bool:
    names = {name.strip() for name in os.environ.get("BULKHEAD_TEST_REQUIRE", "").split(",")}
    return feature in names or "all" in names


def require(feature: str, available: bool, reason: str) -> None:
    """Goes on when `available`; else skips, or fails when BULKHEAD_TEST_REQUIRE names the feature (or says `all`)."""
    if available:
        return
    if required(feature):
        pytest.fail(f"BULKHEAD_TEST_REQUIRE demands {feature}, which is not there: {reason}", pytrace=False)
    pytest.skip(f"{feature}: {reason}")
