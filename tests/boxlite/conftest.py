"""What tests with real boxes share: one machine for all of them, started when the first one asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.boxlite.machine import Machine, missing, running_machine
from tests.require import require


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Only what is built is used: a plain run of the tests does not begin with compiling for minutes."""
    reason = missing()
    require("boxlite", not reason, f"{reason}; `make boxlite` builds what is needed, once, in some 8 minutes")
    with running_machine() as running:
        yield running
