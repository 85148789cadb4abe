"""What the suites share that run against every runtime."""

from __future__ import annotations

import pytest

from tests.contract.kinds import KINDS, MACHINE, Kind


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    if chosen.name == "machine":
        MACHINE.machine = request.getfixturevalue("machine")
    chosen.check()
    return chosen
