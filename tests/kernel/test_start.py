"""How a service starts: unprivileged before it listens, beside others, or not at all and with a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.keys import new_key
from tests.kernel import host
from tests.kernel.talk import start
from tests.require import require
from tests.service import PATIENCE, PROJECT, Service, clean_environment


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def serve(
    data: Path, *options: str, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> tuple[int, str]:
    """(status, stderr) of a service that is expected to refuse its start."""
    command = [*prefix, sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data", str(data), *options]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=clean_environment() | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr


def test_the_gateway_is_unprivileged(service: Service) -> None:
    pid = service.children()["gateway"]
    status, first = status_of(pid), host.first_uid(service)
    assert first >= 1_000_000_000
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(first)}
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    # Not dumpable: its files in /proc belong to root, so that nobody under the same uid could trace it.
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
    assert Path(f"/proc/{service.children()['launcher']}/mem").stat().st_uid == 0


def test_the_gateway_never_listened_as_root(tmp_path: Path) -> None:
    """The kernel notes with each socket who made it: sock_diag's uid, in /proc/net/tcp."""
    require("root", os.geteuid() == 0, "a service that is started as root")
    with Service(tmp_path) as service:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        owners = {fields[7] for fields in lines if fields[1] == f"0100007F:{service.port:04X}" and fields[3] == "0A"}
        assert owners == {str(host.first_uid(service))}


def test_two_services_on_one_host_do_not_collide(service: Service, tmp_path: Path) -> None:
    own = service.create(id="twin")
    with Service(tmp_path) as other:
        assert other.create(id="twin") == "twin"
        firsts = [host.first_uid(each) for each in (service, other)]
        assert len(set(firsts)) == 2
        uids = [host.host_uid(each, "twin") for each in (service, other)]
        assert len(set(uids)) == 2
        running = [start(each, "twin", "sleep", "1000") for each in (service, other)]
        groups = [set(host.groups_of(each, uid)) for each, uid in zip((service, other), uids, strict=True)]
        assert groups[0]
        assert groups[1]
        assert not groups[0] & groups[1]
        assert running[1].delete() == 204
        assert running[0].show()["state"] == "running"
    assert running[0].show()["state"] == "running", "the end of the other one is not ours"
    with host.kept(firsts[1]):
        assert host.left_of(firsts[1]) == []
    assert service.call("DELETE", f"/sandboxes/{own}")[0] == 204


def test_services_with_other_ranges_of_uids_do_not_collide_either(service: Service, tmp_path: Path) -> None:
    """The ranges overlap here, but do not begin at the same uid."""
    with Service(tmp_path, {"BULKHEAD_PROCESS__UID_BASE": str(host.first_uid(service) + 100)}) as other:
        firsts = sorted(host.first_uid(each) for each in (service, other))
        assert firsts[1] - firsts[0] >= 4096
        assert other.run(other.create(), "true")["exit"]["code"] == 0
        assert service.run(service.create(), "true")["exit"]["code"] == 0


def test_the_umask_of_whoever_starts_it_does_not_matter(service: Service, tmp_path: Path) -> None:
    """With 077 the gateway could not reach the launcher, and programs could not read their /etc."""
    command = (
        "sh",
        "-c",
        "umask; id; stat -c '%n %a' / /etc /etc/* /workspace /tmp /dev/shm; echo > made; stat -c %a made",
    )
    with Service(tmp_path, prefix=("sh", "-c", 'umask 077; exec "$@"', "sh")) as other:
        ends = [each.run(each.create(), *command) for each in (other, service)]
    assert ends[0]["exit"]["code"] == 0, ends[0]
    assert ends[0]["stdout"] == ends[1]["stdout"]


def test_without_root_the_process_runtime_is_unavailable_and_says_why(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "root can become somebody else")
    data = tmp_path / "data"
    data.mkdir()
    for folder in (data, *data.parents[:3]):
        folder.chmod(0o755)
    os.chown(data, 1234, 1234)
    drop = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups")
    require(
        "setpriv", subprocess.run([*drop, sys.executable, "-c", ""], capture_output=True).returncode == 0, "util-linux"
    )
    with Service(data, prefix=drop) as service:
        assert (
            "bulkhead: the runtime 'process' is not available: it needs a service that is started as root"
            in service.log
        )
        runtime = service.call("GET", "/runtimes")[1]["items"][0]
        assert (runtime["available"], runtime["enabled"]) == (False, True)
        assert runtime["reason"] == "the runtime 'process' needs a service that is started as root"
        status, problem = service.call("POST", "/sandboxes", {})
        assert (status, problem["type"]) == (503, "/problems/backend_unavailable")
        assert "started as root" in problem["detail"]
        assert service.call("GET", "/readyz")[0] == 503
        assert service.call("GET", "/healthz")[0] == 200


def test_another_address_than_loopback_without_a_key_is_refused(tmp_path: Path) -> None:
    for address in ("0.0.0.0", "::", "192.0.2.1"):
        status, said = serve(tmp_path, "--host", address)
        assert status == 2
        assert f"refusing to listen on {address} without a key" in said
        assert "BULKHEAD_API_KEYS" in said
        assert "Traceback" not in said


def test_another_address_with_a_key_is_served(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    key = new_key(tmp_path, "test")
    service = Service(tmp_path, {"BULKHEAD_HOST": "0.0.0.0"})
    try:
        host.until(lambda: any("listening on" in line for line in service.log), "it listens")
        said = next(line for line in service.log if "listening on" in line)
        service.port = int(said.rpartition(":")[2])
        assert service.call("GET", "/sandboxes")[0] == 401
        assert service.call("GET", "/sandboxes", headers={"authorization": f"Bearer {key}"})[0] == 200
    finally:
        assert service.stop() == 0


def test_too_few_descriptors_refuse_the_start(tmp_path: Path) -> None:
    status, said = serve(tmp_path, prefix=("prlimit", "--nofile=4096:4096"))
    assert status == 2
    assert "descriptors, the limit is 4096: raise it (ulimit -Hn, LimitNOFILE=)" in said


def test_a_low_soft_limit_of_descriptors_is_raised_in_both_halves(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    with Service(tmp_path, prefix=("prlimit", "--nofile=64:20000")) as service:
        sandboxes = [service.create() for _ in range(60)]
        assert service.run(sandboxes[-1], "echo", "fine")["stdout"] == "fine\n"


def test_a_data_folder_that_cannot_hold_output_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "spill").write_text("")
    status, said = serve(tmp_path)
    assert status == 2
    assert f"the data folder {tmp_path} cannot be used: File exists" in said
    assert "Traceback" not in said


def test_a_data_folder_in_use_refuses_a_second_service_and_the_first_keeps_its_output(tmp_path: Path) -> None:
    """The second one would take the folder for output, and the first one's next output would be dropped."""
    require("root", os.geteuid() == 0, "a service that is started as root")
    with Service(tmp_path) as first:
        status, said = serve(tmp_path)
        assert status == 2
        assert f"another service uses the data folder {tmp_path}: use another one, by --data" in said
        assert "Traceback" not in said
        done = first.run(first.create(limits={"output_bytes": 1 << 25}), "head", "-c", "20000000", "/dev/zero")
        assert (done["exit"]["reason"], done["output"]["stdout"]["dropped_bytes"]) == ("exited", 0)


def test_a_service_that_was_killed_starts_again_at_once_on_its_folder(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    first = Service(tmp_path)
    first.wait_listening()
    first.process.kill()
    with Service(tmp_path) as second:
        assert second.run(second.create(), "echo", "again")["stdout"] == "again\n"
    first.stop()


def test_a_data_folder_below_private_ones_is_used(tmp_path: Path) -> None:
    """The gateway could not go there by name any more."""
    require("root", os.geteuid() == 0, "a service that is started as root")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with Service(private / "data") as service:
        sandbox = service.create()
        done = start(service, sandbox, "head", "-c", "3000000", "/dev/zero")
        done.exit()
        assert done.out() == bytes(3_000_000)
    assert (private.stat().st_mode & 0o777, (private / "data").stat().st_uid) == (0o700, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BULKHEAD_NONSENSE", "1"), ("BULKHEAD_SPILL_MIB", "x"), ("BULKHEAD_LIMITS__CPUS__DEFAULT", "-1")],
)
def test_a_wrong_setting_refuses_the_start_by_name(tmp_path: Path, name: str, value: str) -> None:
    status, said = serve(tmp_path, env={name: value})
    assert status == 2
    assert name in said
    assert "Traceback" not in said
