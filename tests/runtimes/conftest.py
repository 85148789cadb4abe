"""One place per runtime, for the whole session; what a runtime does not promise is skipped by the capability's name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.contract.boxlite_kind import BoxliteRuntime
from tests.require import require
from tests.runtimes.places import Place, double_program, place_of, service_for
from tests.service import Service


@pytest.fixture(scope="session", params=["process", "double", "machine"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    data = tmp_path_factory.mktemp("data")
    if request.param == "process":
        require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
        with Service(data) as service:
            yield place_of("process", service, "process")
    elif request.param == "double":
        BoxliteRuntime().check()
        with double_program() as url, service_for(data, url, "test-key") as service:
            yield place_of("double", service, "boxlite")
    else:
        machine = request.getfixturevalue("machine")
        with service_for(data, machine.url, machine.key) as service:
            yield place_of("machine", service, "boxlite")


@pytest.fixture(scope="session")
def shared(place: Place) -> Iterator[str]:
    """A sandbox that tests use together: a boot takes seconds in an emulated machine."""
    sandbox = place.create(env={"GIVEN": "by the sandbox"}, ttl_seconds=3000)
    yield sandbox
    place.delete(sandbox)


@pytest.fixture
def promised(place: Place) -> Callable[[str], None]:
    def check(capability: str) -> None:
        if not place.promises(capability):
            pytest.skip(f"{place.runtime} does not promise {capability}")

    return check
