"""What the tests on the real kernel share: root, and one running service for all that do not break it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.require import require
from tests.service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    with Service(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def sandbox(service: Service) -> Iterator[str]:
    """A default sandbox, destroyed afterwards."""
    sandbox = service.create()
    yield sandbox
    service.call("DELETE", f"/sandboxes/{sandbox}")
