"""The product as containers, twice: on an engine of this host, and in a machine whose /dev/kvm makes microVMs.

All of it ends with the last test of this folder: what comes after measures times, and locks uids of this host.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.boxlite.machine import not_built
from tests.integration import jobs
from tests.integration.docker_machine import DockerMachine, DockerMachineStart, starting_docker_machine
from tests.integration.docker_machine import make_job as make_docker_job
from tests.integration.host_engine import Engine, missing, running_engine
from tests.integration.machine_tests import MachineTests, running_tests
from tests.integration.machine_tests import make_job as make_tests_job
from tests.integration.product import Product
from tests.integration.project import IMAGES, Project
from tests.integration.web import PERMITTED
from tests.require import require


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    require("docker", not missing(), missing())
    with running_engine() as running:
        yield running


@pytest.fixture(scope="package")
def project(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """All but the BoxLite server, built on this host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("compose")
    made = Project(folder / "host", engine.env, {"PUBLISH": f"127.0.0.1:{port}", **PERMITTED})
    made.compose("down", "--volumes", "--remove-orphans")  # of a run that was killed
    made.build(engine.base(), "gateway", "launcher", "egress")
    yield made
    made.compose("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="package")
def product(project: Project) -> Product:
    """Runtime `process` on this host: the services that a host without /dev/kvm starts."""
    project.compose("up", "--detach", "--wait", "launcher", "egress", "gateway")
    return Product(int(project.settings["PUBLISH"].rpartition(":")[2]), project.key())


@pytest.fixture(scope="package", autouse=True)
def begun(request: pytest.FixtureRequest) -> None:
    """What takes minutes beside the others begins before them. Where it cannot, its own tests say why."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    for name in ("machine_tests", "machine_start"):
        if name in wanted:
            with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
                request.getfixturevalue(name)


@pytest.fixture(scope="package")
def machine_tests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineTests]:
    """Those of test_version_2.py, in a machine of their own. What it takes may have been made before."""
    reason = not_built()
    require("boxlite", not reason, f"{reason}; `make boxlite` builds what is needed")
    folder = tmp_path_factory.mktemp("tests")
    job = jobs.made_before(jobs.TESTS)
    if job is None:
        engine: Engine = request.getfixturevalue("engine")
        request.getfixturevalue("project")
        make_tests_job(engine, job := folder / "job")
    with running_tests(job, folder) as running:
        yield running


@pytest.fixture(scope="package")
def machine_start(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerMachineStart]:
    """Gets all four images. They may have been made before."""
    reason = not_built()
    require("boxlite", not reason, f"{reason}; `make boxlite` builds what is needed")
    folder = tmp_path_factory.mktemp("machine")
    job = jobs.made_before(jobs.DOCKER)
    if job is None:
        engine: Engine = request.getfixturevalue("engine")
        jobs.build_server_image(engine, request.getfixturevalue("project"))
        make_docker_job(engine, job := folder / "job", IMAGES)
    with starting_docker_machine(job, folder) as start:
        yield start


@pytest.fixture(scope="package")
def docker_machine(machine_start: DockerMachineStart) -> Iterator[DockerMachine]:
    with machine_start.machine() as running:
        yield running


@pytest.fixture(scope="package")
def machine_project(docker_machine: DockerMachine, tmp_path_factory: pytest.TempPathFactory) -> Project:
    settings = {
        "PUBLISH": "0.0.0.0:8000",  # the machine's port that is forwarded to
        "BOXLITE_IMAGES": "/images",
        "BULKHEAD_BOXLITE__IMAGES": '{"busybox":{"rootfs_path":"/images/busybox"}}',
        "BULKHEAD_BOXLITE__DEFAULT_IMAGE": "busybox",
        **PERMITTED,
    }
    if docker_machine.has_apparmor:
        settings |= {"LAUNCHER_APPARMOR": "bulkhead-launcher", "BOXLITE_APPARMOR": "bulkhead-boxlite"}
    return Project(tmp_path_factory.mktemp("compose") / "machine", docker_machine.env, settings)


@pytest.fixture(scope="package")
def whole_product(docker_machine: DockerMachine, machine_project: Project) -> Product:
    """All four services of the unchanged file, on control groups of version 2.

    Where the emulated processor gets little time, a health check takes longer than the file allows it (seen: each of
    three took more than 30 s while the services started). Then it is asked for again."""
    give_up = time.monotonic() + 1800
    while True:
        try:
            machine_project.compose("up", "--detach", "--wait", seconds=1800)
            break
        except AssertionError as failed:
            if "is unhealthy" not in str(failed).partition("\n\n")[0] or time.monotonic() > give_up:
                raise
            time.sleep(15)  # what is asked of that engine takes its services' time
    return Product(docker_machine.port, machine_project.key())
