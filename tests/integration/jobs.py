"""Makes what the machines of test_version_2.py and test_machine.py take: `python -m tests.integration.jobs FOLDER`.

The engine that it needs ends with it. Those tests then need none on this host, so scripts/test runs them beside tests
that look at the whole host. Without FOLDER in BULKHEAD_TEST_MACHINE_JOBS they make it themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.boxlite.machine import not_built
from tests.integration import docker_machine, machine_tests
from tests.integration.host_engine import Engine, missing, running_engine
from tests.integration.project import IMAGES, Project
from tests.service import PROJECT

TESTS, DOCKER = "tests", "docker"  # folders of FOLDER


def made_before(name: str) -> Path | None:
    folder = Path(os.environ.get("BULKHEAD_TEST_MACHINE_JOBS") or "/nonexistent", name)
    return folder if folder.exists() else None


def build_server_image(engine: Engine, project: Project) -> None:
    """From the server that deploy/boxlite built."""
    script = ". deploy/boxlite/cache.sh && echo $server_folder/boxlite"
    program = subprocess.run(["bash", "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout
    given = project.folder / "deploy/boxlite/given"
    given.mkdir(exist_ok=True)
    shutil.copy(program.strip(), given)
    project.configure(project.settings | {"BOXLITE_PROGRAM": "given"})
    project.build(engine.base(), "boxlite")


def main(folder: Path) -> None:
    """FOLDER has its name once it is whole."""
    if reason := missing() or not_built():
        sys.exit(f"no machine can be started: {reason}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work, running_engine() as engine:
        project = Project(Path(work) / "project", engine.env, {})
        project.build(engine.base(), "gateway", "launcher", "egress")
        build_server_image(engine, project)
        made = Path(work) / "jobs"
        made.mkdir()
        machine_tests.make_job(engine, made / TESTS)
        docker_machine.make_job(engine, made / DOCKER, IMAGES)
        made.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
