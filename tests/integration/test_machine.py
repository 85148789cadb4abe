"""The unchanged compose file, all of it, where /dev/kvm makes microVMs and control groups are version 2."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.integration import promises
from tests.integration.docker_machine import DockerMachine
from tests.integration.product import Product
from tests.integration.project import Project
from tests.kernel import host
from tests.require import require

pytestmark = pytest.mark.timeout(3600)  # the first one to ask for it waits for images, machine and engine

# In the launcher's container, which may mount: what its profile must refuse. Each line says its name if it is let.
CLOSED = """
export LIBMOUNT_FORCE_MOUNT2=always
mkdir /run/launcher/x
mount -t cgroup2 none /run/launcher/x && echo cgroup2
mount -t sysfs none /run/launcher/x && echo sysfs
mount -t proc none /run/launcher/x && echo proc
mount --bind /proc /run/launcher/x && echo bind
mount -o remount,bind,rw /proc/sys && echo remount
echo x > /proc/sys/kernel/core_pattern && echo core_pattern
rmdir /run/launcher/x
"""


def test_all_four_services_are_healthy(docker_machine: DockerMachine, whole_product: Product) -> None:
    def states() -> dict[str, str]:
        containers = docker_machine.client.containers.list()
        return {container.name: container.attrs["State"]["Health"]["Status"] for container in containers}

    all_healthy = {f"bulkhead-{name}-1": "healthy" for name in ("gateway", "launcher", "egress", "boxlite")}
    host.until(lambda: states() == all_healthy, "all four are healthy", seconds=900, every=5)
    runtimes = whole_product.call("GET", "/runtimes")[1]["items"]
    assert {runtime["name"]: runtime["available"] for runtime in runtimes} == {"process": True, "boxlite": True}


def test_a_microvm(whole_product: Product) -> None:
    promises.a_microvm_runs_a_kernel_of_its_own(whole_product)


def test_groups_are_version_2(whole_product: Product) -> None:
    sandbox = whole_product.create(runtime="process")
    assert sandbox["isolation"]["cgroup"]["version"] == 2
    assert sandbox["isolation"]["cgroup"]["swap"] == "none"
    whole_product.delete(sandbox["id"])


@pytest.mark.parametrize("promise", promises.PROCESS, ids=lambda promise: promise.__name__)
def test_process_sandboxes(whole_product: Product, promise: Callable[[Product], None]) -> None:
    promise(whole_product)


def test_a_permitted_host_is_reached(docker_machine: DockerMachine, whole_product: Product) -> None:
    whole_product.delete(promises.a_permitted_host_is_reached(whole_product, docker_machine.client))


def test_a_disk_is_refused_by_name_where_no_room_can_be_reserved(whole_product: Product) -> None:
    """The engine's volumes are on a tmpfs there."""
    status, problem = whole_product.call("POST", "/sandboxes", {"runtime": "process", "storage": "disk"})
    assert (status, problem["type"], problem["missing"]) == (422, "/problems/capability_missing", ["storage_disk"])


def test_the_server_has_one_capability_and_a_profile(docker_machine: DockerMachine, whole_product: Product) -> None:
    container = docker_machine.client.containers.get("bulkhead-boxlite-1")
    config = container.attrs["HostConfig"]
    assert (config["Privileged"], config["ReadonlyRootfs"]) == (False, True)
    assert [name.removeprefix("CAP_") for name in config["CapAdd"]] == ["SETFCAP"]
    assert [device["PathOnHost"] for device in config["Devices"]] == ["/dev/kvm"]
    status = promises.status_of(container)
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert int(status["CapBnd"][0], 16).bit_count() == 1


def test_the_server_asks_for_the_key_that_the_gateway_made(
    docker_machine: DockerMachine, machine_project: Project, whole_product: Product
) -> None:
    gateway = docker_machine.client.containers.get("bulkhead-gateway-1")
    key = gateway.exec_run(["cat", "/var/lib/boxlite-key/key"]).output.decode()
    assert len(key) == 64
    assert key not in machine_project.compose("logs")
    ask = (
        "import urllib.request as r, urllib.error as e, sys\n"
        "q = r.Request('http://boxlite:8100/v1/boxes', headers={'authorization': 'Bearer ' + sys.argv[1]})\n"
        "try: print(r.urlopen(q).status)\n"
        "except e.HTTPError as x: print(x.code)\n"
    )
    answers = [gateway.exec_run(["python", "-c", ask, each]).output.strip() for each in (key, "wrong", key[:-1])]
    assert answers == [b"200", b"401", b"401"]


def test_apparmor_keeps_the_launcher_from_other_mounts(docker_machine: DockerMachine, whole_product: Product) -> None:
    require("apparmor", docker_machine.has_apparmor, "the machine has no apparmor_parser")
    launcher = docker_machine.client.containers.get("bulkhead-launcher-1")
    for name, profile in (("launcher", "bulkhead-launcher"), ("boxlite", "bulkhead-boxlite")):
        container = docker_machine.client.containers.get(f"bulkhead-{name}-1")
        assert container.exec_run(["cat", "/proc/1/attr/apparmor/current"]).output == f"{profile} (enforce)\n".encode()
    status, said = launcher.exec_run(["sh", "-c", CLOSED], demux=True)
    assert (status, said[0]) == (0, None), said
    assert said[1].count(os.linesep.encode()) >= 6, said
