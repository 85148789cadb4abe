"""Let no skip hide: a feature that the host lacks is a skip with its reason, and a failure where CI demands it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Programs that tests run in sandboxes. CI demands each, and scripts/install brings those that Debian 12 does not have.
PROGRAMS = ("curl", "git", "go", "java", "make", "nginx", "node", "npm", "postgres", "redis-server")
_PLACES = ("bin", "sbin", "local/bin", "local/go/bin", "lib/postgresql/*/bin")


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


def require_program(name: str) -> None:
    """One of PROGRAMS, below /usr: of the host's programs a sandbox sees no others."""
    assert name in PROGRAMS
    require(name, any(any(Path("/usr").glob(f"{place}/{name}")) for place in _PLACES), "it is not below /usr")
