"""What the attacks share: the compiled probe, a host worth attacking, what the probe says outside and inside."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.kernel import host as outside
from tests.kernel.attacks.catalog import ALL, FILES, LOOPBACK, NAMES, Attack
from tests.require import require
from tests.service import PROJECT, Service

HERE = Path(__file__).parent
Results = Mapping[str, str]
Verdict = Callable[[Attack, Results], None]


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("gcc", shutil.which("gcc") is not None, "the attack probe is written in C")
    program = tmp_path_factory.mktemp("probe") / "probe"
    sources = sorted(str(path) for path in HERE.glob("probe*.c"))
    flags = ["-Os", "-s", "-std=gnu17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", program, *sources], check=True)
    return program


def install(service: Service, sandbox: str, program: Path) -> None:
    """Into /workspace: the program fits into one argument."""
    text = base64.b64encode(program.read_bytes()).decode()
    done = service.run(sandbox, "sh", "-c", 'echo "$1" | base64 -d > probe && chmod 755 probe', "sh", text)
    assert done["exit"]["code"] == 0, done


def parse(text: str) -> Results:
    return dict(line.split(" ", 1) for line in text.splitlines())


def _answer(kind: int, serve: Callable[[socket.socket], object], address: object) -> socket.socket:
    family = socket.AF_INET6 if isinstance(address, tuple) else socket.AF_UNIX
    listener = socket.socket(family, kind)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(address)  # type: ignore[arg-type]

    def loop() -> None:
        with contextlib.suppress(OSError):  # closed: the tests are over
            while True:
                serve(listener)

    threading.Thread(target=loop, daemon=True).start()
    return listener


def _echo(listener: socket.socket) -> None:
    _, sender = listener.recvfrom(16)
    listener.sendto(b"here", sender)


@pytest.fixture(scope="session")
def prey(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the probe is told of the host: a secret, listeners, the gateway, a process of root's."""
    folder = tmp_path_factory.mktemp("prey")
    (folder / "secret").write_text("the host's own\n")
    name = f"bulkhead-attack-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
        tcp.listen(64)
        port = tcp.getsockname()[1]
        stack.enter_context(_answer(socket.SOCK_DGRAM, _echo, ("::", port)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + name)
        abstract.listen(64)
        victim = stack.enter_context(subprocess.Popen(["sleep", "infinity"]))
        stack.callback(victim.kill)
        folders = sorted(Path("/sys/fs/cgroup").glob("*/release_agent"))
        procs = [*Path("/sys/fs/cgroup").glob("cgroup.procs"), *Path("/sys/fs/cgroup").glob("*/cgroup.procs")]
        slot = f"/run/bulkhead/{outside.first_uid(service)}"
        yield {
            "SECRET": str(folder / "secret"),
            "LINK": str(folder / "secret"),
            "SOURCE": str(PROJECT / "app" / "serving" / "gateway.py"),
            "DATA": str(service.process.args[-1]),  # type: ignore[index]
            "TARGET": str(victim.pid),
            "GATEWAY": str(service.children()["gateway"]),
            "GATEWAY_PORT": str(service.port),
            "PORT": str(port),
            "ABSTRACT": name,
            "SOCKET": slot + "/launcher.sock",
            "SOCKET_FOLDER": slot,
            "BLOCK": next((str(d) for d in Path("/dev").iterdir() if d.is_block_device()), "/dev/vda"),
            "RELEASE_AGENT": str(folders[0]) if folders else "/sys/fs/cgroup/release_agent",
            "CGROUP_PROCS": str(procs[0]),
        }


def run_layer(layer: str, network: str, probe: Path, prey: Mapping[str, str], folder: Path, *names: str) -> Results:
    """What the probe says under one layer alone, or under none."""
    (folder / "run").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel.attacks.layers", layer, network, folder, probe, *names],
        cwd=PROJECT,
        env={"PATH": os.defpath, **prey},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # vhangup would take the terminal of whoever runs the tests
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return parse(done.stdout)


@pytest.fixture(scope="session")
def unconfined(probe: Path, prey: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The control runs of all attacks, as root."""
    folder = tmp_path_factory.mktemp("control")
    found: dict[str, str] = {}
    for network, names in NAMES.items():
        found |= run_layer("none", network, probe, prey, folder / network, *names)
    return found


def _attack(service: Service, probe: Path, prey: Mapping[str, str], attacks: list[Attack], **body: object) -> Results:
    sandbox = service.create(**body)
    install(service, sandbox, probe)
    env = {**prey, "TARGET": "1", "OWN_NETWORK": "1", "LINK": "/usr/bin/env"}
    done = service.run(sandbox, "./probe", *[attack.name for attack in attacks], env=env)
    assert done["exit"]["code"] == 0, done
    service.call("DELETE", f"/sandboxes/{sandbox}")
    return parse(done["stdout"])


@pytest.fixture(scope="session")
def confined(service: Service, probe: Path, prey: dict[str, str]) -> Results:
    """The same attacks in a default sandbox, on its own PID 1 where they need a target."""
    return _attack(service, probe, prey, ALL)


@pytest.fixture(scope="session")
def on_loopback(service: Service, probe: Path, prey: dict[str, str]) -> Results:
    return _attack(service, probe, prey, LOOPBACK, policy={"profile": "loopback"})


@pytest.fixture(scope="session")
def on_disk(service: Service, probe: Path, prey: dict[str, str]) -> Results:
    """With files on ext4 and not on a tmpfs."""
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    return _attack(service, probe, prey, FILES, storage="disk")


@pytest.fixture(scope="session")
def refused(unconfined: Results) -> Verdict:
    """Judges one attack: as expected inside, and shown to work outside."""

    def judge(attack: Attack, inside: Results) -> None:
        assert inside[attack.name] == attack.expected
        control = unconfined[attack.name]
        works = control in attack.control and control != attack.expected
        require(f"attack:{attack.name}", works, f"unconfined it answers {control} on this host, so nothing is shown")

    return judge
