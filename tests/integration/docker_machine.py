"""The machine of deploy/boxlite with a Docker engine in it, driven from here: there, /dev/kvm makes real microVMs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker

from tests.boxlite.machine import free_ports
from tests.integration.host_engine import Engine, cache
from tests.service import PROJECT

RUN_MACHINE = PROJECT / "deploy/boxlite/run-machine"
JOB = PROJECT / "tests/integration/machine-job"
READY = "machine: the engine is ready"
READY_SECONDS = 1800


class DockerMachine:
    """`client` and `env` reach its engine, `port` is where its port 8000 is."""

    def __init__(self, client: docker.DockerClient, env: dict[str, str], port: int) -> None:
        self.client, self.env, self.port = client, env, port

    @property
    def has_apparmor(self) -> bool:
        return any("apparmor" in option for option in self.client.info()["SecurityOptions"])


class DockerMachineStart:
    """A machine of our own from its first moment."""

    def __init__(self, job: Path, out: Path) -> None:
        self._job = job
        self._api, self._gateway = free_ports(2)
        forward = f"hostfwd=tcp:127.0.0.1:{self._api}-:2375,hostfwd=tcp:127.0.0.1:{self._gateway}-:8000"
        network = ("-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net")
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", RUN_MACHINE, job, out, *network],
            env=os.environ | {"LIMIT": "7200", "MEMORY": "4608"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._said, self._ready = _console_of(self.process)

    @contextlib.contextmanager
    def machine(self) -> Iterator[DockerMachine]:
        """Once its engine is ready."""
        assert self._ready.wait(READY_SECONDS), "no engine in the machine: " + "".join(self._said[-30:])
        assert self.process.poll() is None, "the machine ended: " + "".join(self._said[-30:])
        shutil.rmtree(self._job)
        url = f"tcp://127.0.0.1:{self._api}"
        with contextlib.closing(docker.DockerClient(base_url=url, timeout=600)) as client:
            yield DockerMachine(client, Engine(cache()).env | {"DOCKER_HOST": url}, self._gateway)


def make_job(engine: Engine, job: Path, images: Sequence[str]) -> None:
    """With images of the host's engine."""
    job.mkdir()
    shutil.copy(JOB, job / "run.sh")
    shutil.copy(PROJECT / "deploy/docker/apparmor", job)
    engine.store(job / "docker", images)


@contextlib.contextmanager
def starting_docker_machine(job: Path, folder: Path) -> Iterator[DockerMachineStart]:
    """Takes the job, which `make_job` has made, away."""
    start = DockerMachineStart(job, folder / "out")
    try:
        yield start
    finally:
        # The whole group ends, QEMU with it; what it wrote has no name.
        os.killpg(start.process.pid, signal.SIGTERM)
        start.process.wait(300)


def _console_of(process: subprocess.Popen[str]) -> tuple[list[str], threading.Event]:
    said: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                said.append(line)
                if READY in line:
                    ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    return said, ready
