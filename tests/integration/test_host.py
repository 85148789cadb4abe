"""The compose file on this host's own engine: all services in containers, but for the BoxLite server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boxlite.machine import IMAGE
from tests.contract.boxlite_kind import BoxliteRuntime
from tests.integration import promises
from tests.integration.host_engine import Engine
from tests.integration.product import Product
from tests.integration.project import KEY_FILE, Project
from tests.integration.relay import relayed
from tests.integration.web import address_of, beyond_the_host, connects, web_server
from tests.kernel import host
from tests.runtimes.places import double_program

pytestmark = pytest.mark.timeout(1800)  # the first one to ask for it waits for the images


@pytest.mark.parametrize("promise", promises.PROCESS, ids=lambda promise: promise.__name__)
def test_process_sandboxes(product: Product, promise: Callable[[Product], None]) -> None:
    promise(product)


# --- what each container has


def test_the_gateway_has_no_privilege_at_all(engine: Engine, product: Product) -> None:
    container = engine.client.containers.get("bulkhead-gateway-1")
    assert promises.status_of(container) == {
        "Uid": ["10001"] * 4,
        "Gid": ["10001"] * 4,
        "CapPrm": ["0" * 16],
        "CapBnd": ["0" * 16],
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],
    }
    assert container.attrs["HostConfig"]["ReadonlyRootfs"] is True
    assert promises.processes_of(container) == 1, "it starts nothing"
    # Nobody could put another socket in the launcher's place, or read what root has there.
    status, said = container.exec_run(["sh", "-c", "rm /run/launcher/launcher.sock"])
    assert (status, b"Read-only" in said) == (1, True), said


def test_the_launcher_has_eight_capabilities_and_no_network(engine: Engine, product: Product) -> None:
    container = engine.client.containers.get("bulkhead-launcher-1")
    config = container.attrs["HostConfig"]
    assert config["Privileged"] is False
    assert (config["NetworkMode"], config["PidMode"], config["CgroupnsMode"]) == ("none", "", "private")
    assert (config["CapDrop"], len(config["CapAdd"]), config["Devices"]) == (["ALL"], 8, None)
    assert config["DeviceCgroupRules"] == ["c 10:237 rw", "b 7:* rw"]
    status = promises.status_of(container)
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert int(status["CapBnd"][0], 16).bit_count() == 8
    devices = container.exec_run(["cat", "/proc/net/dev"]).output.decode()
    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
    groups = container.exec_run(["cat", "/proc/self/cgroup"]).output.decode()
    assert "docker" not in groups, "the host's groups are out of sight"


def test_files_on_a_disk_take_no_memory(product: Product) -> None:
    promises.files_on_a_disk_take_no_memory(product)


def test_the_launcher_may_not_open_devices(engine: Engine, product: Product) -> None:
    """Version 1 has a controller for that, which stays read-only. On version 2 there is no such file."""
    container = engine.client.containers.get("bulkhead-launcher-1")
    status, said = container.exec_run(["sh", "-c", "echo a > /sys/fs/cgroup/devices/devices.allow"])
    assert status != 0
    assert b"Read-only" in said or b"nonexistent" in said or b"No such" in said, said


def test_the_egress_process_has_no_privilege_and_its_network_alone(engine: Engine, product: Product) -> None:
    container = engine.client.containers.get("bulkhead-egress-1")
    assert promises.status_of(container) == {
        "Uid": ["10002"] * 4,
        "Gid": ["10001"] * 4,
        "CapPrm": ["0" * 16],
        "CapBnd": ["0" * 16],
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],
    }
    assert container.attrs["HostConfig"]["ReadonlyRootfs"] is True
    assert list(container.attrs["NetworkSettings"]["Networks"]) == ["bulkhead_egress"]
    assert promises.processes_of(container) == 1
    assert container.exec_run(["stat", "-c", "%u %g %a", "/run/egress"]).output == b"10002 10001 710\n"
    assert container.exec_run(["stat", "-c", "%u %g %a", "/run/egress/egress.sock"]).output == b"10002 10001 660\n"


# --- the network of sandboxes


def test_a_permitted_host_is_reached_also_after_the_egress_process_was_killed(engine: Engine, product: Product) -> None:
    promises.a_permitted_host_is_reached_also_after_the_egress_process_was_killed(product, engine.client)


def test_only_the_egress_process_has_a_way_to_others_and_beyond_the_machine(engine: Engine, product: Product) -> None:
    gateway, egress = (engine.client.containers.get(f"bulkhead-{name}-1") for name in ("gateway", "egress"))
    with web_server(engine.client) as server, beyond_the_host() as outside:
        for address in (address_of(server), outside):
            assert connects(egress, address, 60), "the control"
            assert not connects(gateway, address, 2)


# --- keys


def test_the_key_is_nobody_elses_and_in_no_log(engine: Engine, project: Project, product: Product) -> None:
    container = engine.client.containers.get("bulkhead-gateway-1")
    assert container.exec_run(["stat", "-c", "%u %a", KEY_FILE]).output == b"10001 600\n"
    assert product.key not in project.compose("logs")
    assert product.key.startswith("bh_")
    for wrong in ("", "changeme", "bh_" + "a" * 43):
        assert Product(product.port, wrong).ask("GET", "/sandboxes")[0] == 401
    assert product.ask("GET", "/sandboxes")[0] == 200


def test_the_servers_key_is_readable_to_its_group_alone(engine: Engine, product: Product) -> None:
    container = engine.client.containers.get("bulkhead-gateway-1")
    path = "/var/lib/boxlite-key/key"
    assert container.exec_run(["stat", "-c", "%u %g %a", path]).output == b"10001 10001 640\n"
    assert len(container.exec_run(["cat", path]).output) == 64


# --- restarts


def test_a_restarted_gateway_has_the_same_keys_and_finds_the_launcher(engine: Engine, product: Product) -> None:
    sandbox = product.create(runtime="process", id="before")
    shared = engine.client.containers.get("bulkhead-gateway-1").exec_run(["cat", "/var/lib/boxlite-key/key"]).output
    engine.client.containers.get("bulkhead-gateway-1").restart(timeout=30)
    promises.wait_ready(product)
    assert product.call("GET", f"/sandboxes/{sandbox['id']}")[0] == 404
    again = engine.client.containers.get("bulkhead-gateway-1").exec_run(["cat", "/var/lib/boxlite-key/key"]).output
    assert again == shared
    promises.a_command_runs_as_nobody_in_a_room_of_its_own(product)


def test_a_restarted_launcher_is_found_again_and_its_sandboxes_are_lost(engine: Engine, product: Product) -> None:
    sandbox = product.create(runtime="process")["id"]
    engine.client.containers.get("bulkhead-launcher-1").restart(timeout=30)
    promises.wait_ready(product)
    assert product.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "failed"
    promises.a_command_runs_as_nobody_in_a_room_of_its_own(product)


def test_a_killed_launcher_takes_every_sandbox_with_it(engine: Engine, product: Product) -> None:
    sandbox = product.create(runtime="process")
    uid = sandbox["isolation"]["host_uid"]
    assert host.processes_of(uid)
    engine.client.containers.get("bulkhead-launcher-1").kill()
    host.until(lambda: not host.processes_of(uid), "the kernel ends them")
    engine.client.containers.get("bulkhead-launcher-1").start()  # a killed container is not started again by itself
    promises.wait_ready(product)
    promises.a_command_runs_as_nobody_in_a_room_of_its_own(product)


# --- the other runtime


@pytest.fixture
def with_boxlite(engine: Engine, project: Project, product: Product) -> Iterator[Product]:
    """The gateway is told where the server is, as an operator would tell it: in .env."""
    BoxliteRuntime().check()
    bridge = engine.client.networks.get("bulkhead_default").attrs["IPAM"]["Config"][0]["Gateway"]
    key = "key-of-the-server"
    with double_program(key) as url, relayed(bridge, int(url.rpartition(":")[2])) as port:
        before = project.settings
        project.configure(
            before
            | {
                "BULKHEAD_BOXLITE__URL": f"http://{bridge}:{port}",
                "BULKHEAD_BOXLITE__API_KEY": key,
                "BULKHEAD_BOXLITE__IMAGES": f'{{"busybox":{{"rootfs_path":"{IMAGE}"}}}}',
            }
        )
        project.compose("up", "--detach", "--wait", "gateway")
        yield product
        project.configure(before)
        project.compose("up", "--detach", "--wait", "gateway")


def test_a_server_elsewhere_is_reached_with_its_key(with_boxlite: Product) -> None:
    """The double of one. test_machine.py has a real microVM."""
    sandbox = with_boxlite.create(runtime="boxlite", image="busybox")
    assert sandbox["isolation"]["tier"] == "vm"
    done = with_boxlite.run(sandbox["id"], "sh", "-c", "echo to stdout; exit 3")
    assert (done["stdout"], done["exit"]["code"]) == ("to stdout\n", 3)
    with_boxlite.delete(sandbox["id"])


# --- the end: the last test of this file


def test_nothing_is_left_after_down(project: Project, product: Product) -> None:
    uid = product.create(runtime="process")["isolation"]["host_uid"]
    project.compose("down")
    assert host.processes_of(uid) == []
    first = uid - (uid - 1_900_000_000) % 4096
    assert not Path(f"/run/bulkhead/{first}").exists()
    project.compose("up", "--detach", "--wait", "launcher", "egress", "gateway")
    assert product.ask("GET", "/sandboxes")[0] == 200, "the state, and in it the key, is in a volume"
