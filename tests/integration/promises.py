"""What a started product keeps, wherever its containers run: each takes the product, a test module says where it is."""

from __future__ import annotations

import http.client
import os
from typing import Any

import docker
from docker.models.containers import Container

from tests.integration.product import Product
from tests.integration.web import web_server
from tests.kernel import host

MIB = 1 << 20
FORKS = """
import os
made = 0
ended, held = os.pipe()  # what was forked lives as long as the first one
try:
    while os.fork():
        made += 1
    os.close(held)
    os.read(ended, 1)
except OSError as error:
    print(made, error.errno)
"""
WORKS = """
import time
end = time.monotonic() + 2
while time.monotonic() < end:
    pass
"""


def all_layers_are_in_force(product: Product) -> None:
    sandbox = product.create(runtime="process")
    receipt = sandbox["isolation"]
    assert receipt["missing_layers"] == []
    assert receipt["namespaces"] == ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]
    assert receipt["host_uid"] >= 1_900_000_000
    assert set(receipt["capabilities"].values()) == {0}
    assert (receipt["cgroup"]["memory_bytes"], receipt["cgroup"]["processes"]) == (512 * MIB, 128)
    product.delete(sandbox["id"])


def a_command_runs_as_nobody_in_a_room_of_its_own(product: Product) -> None:
    sandbox = product.create(runtime="process")["id"]
    script = "id -u; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'; python3 -c 'print(6*7)'"
    done = product.run(sandbox, "sh", "-c", script)
    assert done["stdout"].split()[0:2] == ["1000", "bulkhead"]
    assert int(done["stdout"].split()[2]) <= 5, "no process of the container is in sight"
    assert done["stdout"].split()[3] == "42"
    assert product.run(sandbox, "sh", "-c", "exit 3")["exit"]["code"] == 3
    assert product.run(sandbox, "sh", "-c", "echo x > /usr/x")["exit"]["code"] != 0
    product.delete(sandbox)


def the_memory_limit_is_an_oom(product: Product) -> None:
    sandbox = product.create(runtime="process", limits={"memory_mib": 64, "disk_mib": 16})["id"]
    done = product.run(sandbox, "python3", "-c", "x = bytearray(200 << 20)")
    assert done["exit"]["reason"] == "oom", done
    assert 60 * MIB < done["exit"]["max_memory_bytes"] <= 64 * MIB
    assert product.run(sandbox, "echo", "lives on")["stdout"] == "lives on\n"
    product.delete(sandbox)


def files_on_a_disk_take_no_memory(product: Product) -> None:
    sandbox = product.create(runtime="process", storage="disk", limits={"memory_mib": 64, "disk_mib": 128})
    assert sandbox["isolation"]["storage"]["file_system"] == "ext4"
    script = "head -c 100M /dev/zero > x; stat -c %s x; head -c 100M /dev/zero > y || stat -f -c %T ."
    done = product.run(sandbox["id"], "sh", "-c", script)
    assert done["stdout"] == f"{100 * MIB}\next2/ext3\n", done
    product.delete(sandbox["id"])


def a_program_survives_its_child_that_ran_out_of_memory(product: Product) -> None:
    """On both versions of control groups."""
    sandbox = product.create(runtime="process", limits={"memory_mib": 64, "disk_mib": 16})["id"]
    script = "python3 -c 'x = bytearray(200 << 20)'; echo survived; exit 7"
    done = product.run(sandbox, "sh", "-c", script)
    assert (done["stdout"], done["exit"]["reason"]) == ("survived\n", "oom"), done
    assert "killed 1 of its processes" in done["exit"]["detail"]
    assert "exit code 7" in done["exit"]["detail"]
    product.delete(sandbox)


def a_loop_of_kills_for_memory_is_ended(product: Product) -> None:
    """On both versions of control groups: the kernel tells each in its own way."""
    sandbox = product.create(runtime="process", limits={"memory_mib": 64, "disk_mib": 16})["id"]
    script = "while :; do python3 -c 'x = bytearray(200 << 20)'; done"
    done = product.run(sandbox, "sh", "-c", script)
    assert (done["exit"]["reason"], done["exit"]["signal"]) == ("oom", "SIGKILL"), done
    assert done["exit"]["detail"].endswith("after 10 it is ended"), done
    product.delete(sandbox)


def the_limit_of_processes_holds(product: Product) -> None:
    sandbox = product.create(runtime="process", limits={"processes": 8})["id"]
    done = product.run(sandbox, "python3", "-c", FORKS)
    assert done["stdout"] == "7 11\n", done
    product.delete(sandbox)


def the_cpu_limit_holds(product: Product) -> None:
    sandbox = product.create(runtime="process", limits={"cpus": 0.25})["id"]
    done = product.run(sandbox, "python3", "-c", WORKS)
    assert done["exit"]["code"] == 0, done
    assert done["exit"]["cpu_seconds"] < 0.5 * done["exit"]["duration_seconds"], done
    product.delete(sandbox)


def a_kill_reaches_a_daemon(product: Product) -> None:
    sandbox = product.create(runtime="process")["id"]
    script = "setsid sleep 1000 & sleep 1000"
    status, execution = product.call("POST", f"/sandboxes/{sandbox}/executions", {"command": ["sh", "-c", script]})
    assert status == 201, execution
    path = f"/sandboxes/{sandbox}/executions/{execution['id']}"
    count = "grep -l sleep /proc/[0-9]*/comm 2>/dev/null | wc -l"
    while product.run(sandbox, "sh", "-c", count)["stdout"] != "2\n":
        pass
    assert product.ask("DELETE", path)[0] == 204
    status, execution = product.call("GET", f"{path}?wait_seconds=60")
    assert execution["exit"]["reason"] == "killed", execution
    while product.run(sandbox, "sh", "-c", count)["stdout"] != "0\n":  # the dead have names until they are reaped
        pass
    product.delete(sandbox)


def a_deleted_sandbox_is_gone(product: Product) -> None:
    sandbox = product.create(runtime="process")["id"]
    product.call("POST", f"/sandboxes/{sandbox}/executions", {"command": ["sleep", "1000"]})
    product.delete(sandbox)
    assert product.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "destroyed"


PROCESS = (
    all_layers_are_in_force, a_command_runs_as_nobody_in_a_room_of_its_own, the_memory_limit_is_an_oom,
    a_program_survives_its_child_that_ran_out_of_memory, a_loop_of_kills_for_memory_is_ended,
    the_limit_of_processes_holds, the_cpu_limit_holds, a_kill_reaches_a_daemon, a_deleted_sandbox_is_gone,
)  # fmt: skip


def a_microvm_runs_a_kernel_of_its_own(product: Product) -> None:
    sandbox = _microvm(product)
    assert sandbox["isolation"]["tier"] == "vm"
    done = product.run(sandbox["id"], "sh", "-c", "uname -r; echo to stderr >&2; exit 3")
    assert done["stdout"].strip() == sandbox["isolation"]["measured"]["kernel"]
    assert done["stdout"].strip() != os.uname().release
    assert (done["stderr"], done["exit"]["reason"], done["exit"]["code"]) == ("to stderr\n", "exited", 3)
    product.delete(sandbox["id"])


def _microvm(product: Product) -> dict[str, Any]:
    """Where the processor is emulated and shared, a boot may take longer than the server waits for its guest (30 s), or
    than we wait for its first command (15 s)."""
    failed: list[dict[str, Any]] = []
    while len(failed) < 5:
        status, sandbox = product.call("POST", "/sandboxes", {"runtime": "boxlite", "image": "busybox"})
        while status == 201 and sandbox["state"] == "creating":
            sandbox = product.call("GET", f"/sandboxes/{sandbox['id']}?wait_seconds=60")[1]
        if status == 201 and sandbox["state"] == "running":
            return dict(sandbox)
        assert status in {201, 503, 504}, sandbox  # what is refused, or a fault of ours, is not a matter of time
        assert "the runtime failed" not in str(sandbox), sandbox
        failed.append(sandbox)
    raise AssertionError(failed)


FETCH = """
import socket, urllib.request
print(socket.gethostbyname("www.example.org"), urllib.request.urlopen("http://www.example.org/").read().decode())
"""


def a_permitted_host_is_reached(product: Product, client: docker.DockerClient) -> str:
    """Returns the sandbox. A rule with `http` gives it an authority, for which the launcher mounts more than without.
    The other rule comes later, so the launcher makes its listener in the sandbox that runs."""
    read = {"host": "api.example.org", "ports": [443], "http": [{}]}
    policy = {"profile": "loopback", "network": {"mode": "proxy", "allow": [read]}}
    made = product.create(runtime="process", policy=policy)
    assert "/etc/ssl/certs/ca-certificates.crt" in made["isolation"]["network"]["authority"]["trusted_in"]
    body = {"policy": {"network": {"allow": [read, "www.example.org:80"]}}}
    status, changed = product.call("PATCH", f"/sandboxes/{made['id']}", body)
    assert status == 200, changed
    with web_server(client):
        assert product.run(made["id"], "python3", "-c", FETCH)["stdout"] == "198.18.0.1 answered\n"
    return str(made["id"])


def a_permitted_host_is_reached_also_after_the_egress_process_was_killed(
    product: Product, client: docker.DockerClient
) -> None:
    egress = client.containers.get("bulkhead-egress-1")
    sandbox = a_permitted_host_is_reached(product, client)
    with web_server(client):
        egress.kill()
        egress.start()  # a killed container is not started again by itself
        done = product.run(sandbox, "python3", "-c", FETCH)
        assert done["stdout"] == "198.18.0.1 answered\n", done
    product.delete(sandbox)


# --- looking at containers


def status_of(container: Container) -> dict[str, list[str]]:
    """What the kernel says of the container's first process."""
    lines = container.exec_run(["cat", "/proc/1/status"]).output.decode().splitlines()
    wanted = ("Uid", "Gid", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")
    pairs = [line.partition(":")[::2] for line in lines]
    return {name: value.split() for name, value in pairs if name in wanted}


def processes_of(container: Container) -> int:
    return len(container.top()["Processes"])


def wait_ready(product: Product) -> None:
    """A sandbox can be made. /readyz would not do: its answer may be one second old."""

    def ready() -> bool:
        try:
            status, sandbox = product.call("POST", "/sandboxes", {"runtime": "process"})
        except (OSError, http.client.HTTPException):  # it is about to end, or to begin
            return False
        if status == 201:
            product.delete(sandbox["id"])
        return bool(status == 201)

    host.until(ready, "the product makes sandboxes", 600, every=0.1)
