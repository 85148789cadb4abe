"""A Docker engine for tests alone: its own socket, its own images, and a cache of those between runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from tests.require import required
from tests.service import PROJECT

ENGINE = PROJECT / "tests/integration/engine"
BASE = "bulkhead-test-base:trixie"


def cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bulkhead/docker"
    return Path(os.environ.get("BULKHEAD_TEST_DOCKER_CACHE") or default)


def missing() -> str:
    """Why no engine can be started here; empty when one can. Only where it is required it is also installed."""
    if os.geteuid() != 0:
        return "an engine needs root"
    if required("docker"):
        return ""
    if shutil.which("dockerd") is None:
        return f"no engine is installed; BULKHEAD_TEST_REQUIRE=docker lets {ENGINE.relative_to(PROJECT)} install one"
    if _another_runs():
        return "another engine runs on this host, and two would share a bridge and the firewall's chains"
    return ""


def _another_runs() -> bool:
    """Of whatever owner: its end or ours would take networks from the other's containers."""
    for entry in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if entry.read_text() == "dockerd\n":
                return True
    return False


class Engine:
    """Running while the block does. `env` is for the command line's client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self.client: docker.DockerClient

    @property
    def env(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.url, "DOCKER_CONFIG": str(self.folder / "config")}

    def base(self) -> str:
        """A base image made here: no image registry is asked."""
        try:
            self.client.images.get(BASE)
        except ImageNotFound:
            subprocess.run([ENGINE, self.folder, "base", BASE], check=True, timeout=1800, stdout=subprocess.DEVNULL)
        return BASE

    def store(self, folder: Path, images: Sequence[str]) -> None:
        """Makes the data of another engine that has these images."""
        save = ["docker", "save", *images]
        with subprocess.Popen(save, env=os.environ | self.env, stdout=subprocess.PIPE) as saving:
            load = ["timeout", "600", str(ENGINE), str(self.folder), "store", str(folder)]  # SIGTERM ends both engines
            subprocess.run(load, stdin=saving.stdout, stdout=subprocess.DEVNULL, check=True)
        assert saving.returncode == 0


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    engine = Engine(cache())
    engine.folder.mkdir(parents=True, exist_ok=True)
    with (engine.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests has it
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", ENGINE, engine.folder, "start"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        said, listening = _listen_to(process)
        try:
            assert listening.wait(900), "the engine does not answer: " + "".join(said[-20:])
            assert process.poll() is None, "the engine ended: " + "".join(said[-20:])
            engine.client = docker.DockerClient(base_url=engine.url, timeout=600)
            try:
                yield engine
            finally:
                engine.client.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(300)


def _listen_to(process: subprocess.Popen[str]) -> tuple[list[str], threading.Event]:
    """What it says, and whether it listens (or ended: look)."""
    said: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                said.append(line)
                if "API listen on" in line:
                    listening.set()
        listening.set()

    threading.Thread(target=read, daemon=True).start()
    return said, listening
