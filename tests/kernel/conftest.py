"""What the tests on the real kernel share: root, and one running service for all that do not break it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernel import host
from tests.kernel.direct import SPARE, Gateway, Launched, launcher, plan, sandboxes_of
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


# --- the launcher alone


@pytest.fixture(scope="module")
def launched() -> Iterator[Launched]:
    require("root", os.geteuid() == 0, "the launcher needs root")
    with launcher() as running:
        before = len(host.descriptors(running[1].pid))
        yield running
        host.until(lambda: len(host.descriptors(running[1].pid)) <= before + SPARE, "no descriptor stays")


@pytest.fixture
def honest(launched: Launched) -> Iterator[Gateway]:
    """A second connection that works all the while: it has a sandbox before, and runs a command in it after."""
    with Gateway(launched[0].socket) as gateway, gateway.create(plan("honest")) as owner:
        yield gateway
        assert gateway.run(owner, 1, "echo", "fine", sandbox_id="honest") == (b"fine\n", 0)
        gateway.destroy("honest")
    assert launched[1].poll() is None
    host.until(lambda: not sandboxes_of(launched), "no sandbox is left")


@pytest.fixture
def hostile(launched: Launched, honest: Gateway) -> Iterator[Gateway]:
    with Gateway(launched[0].socket) as gateway:
        gateway.hello()  # the launcher has accepted it: a test may count descriptors
        yield gateway
