"""Tests of tests/kernel, run by pytest in the machine of deploy/boxlite. Its control groups are version 2.

The tests and their service run as on any host. Their Python libraries are those of the launcher's image, which is made
for the same release of Debian.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import pytest

from tests.integration.docker_machine import RUN_MACHINE
from tests.integration.host_engine import Engine
from tests.integration.project import IMAGES
from tests.integration.version_2 import TESTS
from tests.service import PROJECT

JOB = PROJECT / "tests/integration/pytest-job"
IMAGE = IMAGES[1]
# All of it is Python source, so that of this environment fits any version.
PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest-timeout")


class MachineTests:
    """They begin to run when this is made. `check` waits for all of them."""

    def __init__(self, job: Path, out: Path) -> None:
        self._report, self._said = out / "results.xml", out / "console"
        out.mkdir()
        with self._said.open("w") as console:
            self.process = subprocess.Popen(
                # What waits for the machine beside this one has 30 s for the start of a box.
                ["nice", "-n", "5", "setpriv", "--pdeathsig", "TERM", RUN_MACHINE, job, out, "-smp", "2"],
                env=os.environ | {"LIMIT": "3400", "MEMORY": "2048"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self, test: str) -> None:
        self.process.wait()
        if not self._report.exists():
            pytest.fail(f"the machine left no report: {self._said.read_text(errors='replace')[-3000:]}", pytrace=False)
        check(self._report, test)


def check(report: Path, test: str) -> None:
    """Fails where it failed there, was skipped, as nothing is missing there that it needs, or was not run."""
    found = _cases(report, test)
    if not found:
        pytest.fail("it was not run", pytrace=False)
    wrong = [each for case in found for each in case if each.tag in {"failure", "error", "skipped"}]
    if wrong:
        pytest.fail("\n".join(f"{each.get('message')}\n{each.text}" for each in wrong), pytrace=False)


def _cases(report: Path, test: str) -> list[ET.Element]:
    """One; more where it has parameters."""
    path, _, name = test.partition("::")
    module = path.removesuffix(".py").replace("/", ".")
    return [
        case
        for case in ET.parse(report).iter("testcase")
        if case.get("classname") == module and name in {case.get("name"), str(case.get("name")).partition("[")[0]}
    ]


@contextlib.contextmanager
def running_tests(job: Path, folder: Path) -> Iterator[MachineTests]:
    """Those of a folder that `make_job` has made."""
    running = MachineTests(job, folder / "out")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGTERM)
        running.process.wait(300)


def make_job(engine: Engine, job: Path) -> None:
    """The engine has the image of the launcher."""
    job.mkdir()
    shutil.copy(JOB, job / "run.sh")
    (job / "tests").write_text("".join(f"{test}\n" for test in TESTS))
    _copy_product(engine, job)


def _copy_product(engine: Engine, job: Path) -> None:
    """/opt/bulkhead of the image, with the tests and pytest, all of it compiled: that takes a minute in the machine."""
    container = engine.client.containers.create(IMAGE)
    try:
        copy = ["docker", "cp", "--quiet", f"{container.id}:/opt/bulkhead", str(job)]
        subprocess.run(copy, env=os.environ | engine.env, check=True, timeout=600)
    finally:
        container.remove()
    source, (libraries,) = job / "bulkhead/src", job.glob("bulkhead/lib/python3.*/site-packages")
    shutil.copy(PROJECT / "pyproject.toml", source)
    for path in [*PROJECT.glob("tests/*.py"), *PROJECT.glob("tests/kernel/**/*.[pc]*")]:
        if "__pycache__" not in path.parts:
            _copy(path, source / path.relative_to(PROJECT))
    for name in PYTEST:
        for file in files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                _copy(Path(str(file.locate())), libraries / file)
    compile_ = ["python3", "-m", "compileall", "-q", "/job"]
    volumes = {str(job): {"bind": "/job", "mode": "rw"}}
    engine.client.containers.run(IMAGE, compile_, entrypoint="", network_mode="none", volumes=volumes, remove=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
