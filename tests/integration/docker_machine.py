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
from tests.integration.host_engine import Engine
from tests.service import PROJECT

RUN_MACHINE = PROJECT / "deploy/boxlite/run-machine"
JOB = PROJECT / "tests/integration/machine-job"
READY = "machine: the engine is ready"


class DockerMachine:
    """`client` and `env` reach its engine, `port` is where its port 8000 is."""

    def __init__(self, client: docker.DockerClient, env: dict[str, str], port: int) -> None:
        self.client, self.env, self.port = client, env, port

    @property
    def has_apparmor(self) -> bool:
        return any("apparmor" in option for option in self.client.info()["SecurityOptions"])


@contextlib.contextmanager
def running_docker_machine(engine: Engine, folder: Path, images: Sequence[str]) -> Iterator[DockerMachine]:
    """With images of the host's engine."""
    job = folder / "job"
    job.mkdir()
    shutil.copy(JOB, job / "run.sh")
    shutil.copy(PROJECT / "deploy/docker/apparmor", job)
    save = ["docker", "save", "--output", str(job / "images.tar"), *images]
    subprocess.run(save, env=os.environ | engine.env, check=True, timeout=600)
    api, gateway = free_ports(2)
    forward = f"hostfwd=tcp:127.0.0.1:{api}-:2375,hostfwd=tcp:127.0.0.1:{gateway}-:8000"
    network = ("-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net")
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", RUN_MACHINE, job, folder / "out", *network],
        env=os.environ | {"LIMIT": "7200", "MEMORY": "4608"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, ready = _console_of(process)
        assert ready.wait(1800), "no engine in the machine: " + "".join(said[-30:])
        assert process.poll() is None, "the machine ended: " + "".join(said[-30:])
        shutil.rmtree(job)
        url = f"tcp://127.0.0.1:{api}"
        with contextlib.closing(docker.DockerClient(base_url=url, timeout=600)) as client:
            yield DockerMachine(client, engine.env | {"DOCKER_HOST": url}, gateway)
    finally:
        # The whole group ends, QEMU with it; what it wrote has no name.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(300)


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
