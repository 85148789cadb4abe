"""The trust stores of a plan with an authority. Programs find its certificate beside those of the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.egress.authority import Authority, new_authority
from app.launcher.protocol import AUTHORITY_HASH, CreatePlan
from app.launcher.sandbox.trust import CERTIFICATE, find_stores
from tests.kernel import host
from tests.kernel.direct import MIB, Gateway, Launched, launcher, plan
from tests.require import require, require_program

AUTHORITY = new_authority()
PEM = AUTHORITY.certificate.encode()
ETC = ["/etc/ld.so.cache", "/etc/ssl/certs", "/etc/alternatives", *map(str, Path("/etc").glob("java*"))]
STORES = find_stores(["/usr"])
# Of the memory that files of a tmpfs take, in control groups of version 1 or 2.
SHARED = "cat /sys/fs/cgroup/memory/memory.stat /sys/fs/cgroup/memory.stat 2> /dev/null"
SHARED += " | awk '/^(total_)?shmem / { n = $2 } END { print n }'"


@pytest.fixture(scope="module")
def trusting() -> Iterator[Launched]:
    """A launcher whose template has the host's certificates."""
    require("root", os.geteuid() == 0, "a launcher needs root")
    require("certificates", bool(STORES.bundles), "this host has no certificates of authorities")
    with launcher(etc_paths=ETC) as running:  # type: ignore[arg-type]  # it takes lists as well
        yield running


class Inside:
    def __init__(self, gateway: Gateway, wanted: CreatePlan) -> None:
        self._gateway, self._number, self.id = gateway, 0, wanted.sandbox_id
        self.owner, self.sockets = gateway.create_with_sockets(wanted)

    def read(self, *argv: str) -> bytes:
        self._number += 1
        return self._gateway.run(self.owner, self._number, *argv, sandbox_id=self.id)[0]

    def shell(self, script: str) -> str:
        return self.read("sh", "-c", script).decode()


@contextmanager
def sandbox(launched: Launched, **changes: object) -> Iterator[Inside]:
    with Gateway(launched[0].socket) as gateway:
        made = Inside(gateway, plan(**{"ports": [443], **changes}))  # type: ignore[arg-type]
        try:
            yield made
        finally:
            gateway.destroy(made.id)
            for each in (made.owner, *made.sockets):
                each.close()


def test_hash_in_the_name_of_the_file_is_that_of_every_authority(tmp_path: Path) -> None:
    for number in range(2):
        path = tmp_path / str(number)
        path.write_text(new_authority().certificate)
        command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(path)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == AUTHORITY_HASH


def test_bundle_is_the_hosts_and_the_certificate(trusting: Launched) -> None:
    with sandbox(trusting, authority=PEM) as made:
        for path in STORES.bundles:
            assert made.read("cat", path) == Path(path).read_bytes() + b"\n" + PEM
        assert made.read("cat", CERTIFICATE) == PEM


def test_sandbox_without_an_authority_has_the_hosts_stores(trusting: Launched) -> None:
    paths = [*STORES.bundles, *STORES.java]
    with sandbox(trusting) as made:
        assert [made.read("cat", path) for path in paths] == [Path(path).read_bytes() for path in paths]
        assert made.read("cat", CERTIFICATE) == b""
        assert "/etc/ssl" not in made.shell("cat /proc/self/mountinfo"), "nothing is mounted for it"


def test_each_sandbox_trusts_its_own_authority_only(trusting: Launched) -> None:
    other = new_authority()
    leaf = Authority(AUTHORITY).leaf("www.example.org").certificate
    verify = f"echo '{leaf}' > /tmp/leaf; openssl verify /tmp/leaf > /dev/null 2>&1; echo $?"
    by_folder = verify.replace("verify ", "verify -no-CAfile -CApath /etc/ssl/certs ")
    results = []
    for authority in (PEM, other.certificate.encode(), b""):
        with sandbox(trusting, authority=authority) as made:
            results.append((made.shell(verify), made.shell(by_folder)))
    assert results == [("0\n", "0\n"), ("2\n", "2\n"), ("2\n", "2\n")]


def test_stores_cannot_be_changed_from_inside(trusting: Launched) -> None:
    with sandbox(trusting, authority=PEM, read_write=["/workspace", "/tmp", "/etc", "/usr"]) as made:
        for path in (CERTIFICATE, *STORES.bundles, *STORES.java):
            before = made.read("cat", path)
            tries = (f"echo x >> {path}", f"chmod 666 {path}", f"rm -f {path}", f"umount {path}")
            assert made.shell("; ".join(f"({each}) 2> /dev/null || echo refused" for each in tries)) == "refused\n" * 4
            assert made.read("cat", path) == before


def test_narrower_policy_decides_about_the_stores_as_about_the_hosts(trusting: Launched) -> None:
    bundle = STORES.bundles[0]
    with sandbox(trusting, authority=PEM, read_only=["/usr", str(Path(bundle).parent)]) as made:
        assert made.read("cat", bundle).endswith(PEM)
    with sandbox(trusting, authority=PEM, read_only=["/usr"]) as made:
        assert made.shell(f"cat {bundle} 2>&1 | grep -c 'Permission denied'") == "1\n"


def test_stores_count_for_the_sandbox_and_not_for_its_room_for_files(trusting: Launched) -> None:
    """The kernel adds up its counts every two seconds, so the control comes second."""
    size, free = sum(Path(path).stat().st_size for path in (*STORES.bundles, *STORES.java)), "stat -fc %f /workspace"
    with sandbox(trusting) as without, sandbox(trusting, sandbox_id="two", authority=PEM) as made:
        host.until(lambda: int(made.shell(SHARED)) > 0.9 * size, "the files count for the sandbox")
        assert int(made.shell(SHARED)) < 1.2 * size
        assert int(without.shell(SHARED)) < 0.1 * size
        assert made.shell(free) == without.shell(free)


def test_create_that_fails_afterwards_leaves_nothing(trusting: Launched) -> None:
    before = host.descriptors(trusting[1].pid)
    with Gateway(trusting[0].socket) as gateway:
        for _ in range(3):
            with pytest.raises(Exception, match="restrict_files"):
                gateway.create(plan(authority=PEM, read_only=["/nowhere"]))
        gateway.create(plan()).close()
        gateway.destroy()
    assert len(host.descriptors(trusting[1].pid)) <= len(before) + 4


def test_host_without_certificates_has_the_authority_alone(launched: Launched) -> None:
    """The template of this launcher has no certificates."""
    with sandbox(launched, authority=PEM) as made:
        assert made.shell(f"ls /etc/ssl/certs; cat {CERTIFICATE}") == Path(CERTIFICATE).name + "\n" + PEM.decode()


def test_java_reads_the_store(trusting: Launched) -> None:
    require_program("java")
    listed = "keytool -list -cacerts -storepass changeit 2> /dev/null | grep -c trustedCertEntry"
    count = Path(STORES.bundles[0]).read_text().count("BEGIN CERTIFICATE")
    wanted = {"memory_bytes": 512 * MIB, "processes": 100, "cpu_millis": 1000}
    with sandbox(trusting, authority=PEM, **wanted) as made:
        assert made.shell(listed) == f"{count + 1}\n"
