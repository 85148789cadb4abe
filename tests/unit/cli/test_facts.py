"""`show`: what a sandbox was asked to be, and the main facts of its receipt, for people."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.cli.facts import facts_of
from tests.unit.cli.fake_service import BASE, SANDBOX, answer, fake_service
from tests.unit.cli.test_commands import shown
from tests.unit.cli.typed import bulkhead

MIB = 2**20
RECEIPT: dict[str, Any] = {
    "tier": "kernel",
    "namespaces": ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"],
    "host_uid": 1_900_000_001,
    "root": "host",
    "no_new_privs": True,
    "capabilities": {"amb": 0, "bnd": 0, "eff": 0, "inh": 0, "prm": 0},
    "landlock": {
        "abi": 7,
        "files": ["execute", "read_file", "write_file"],
        "tcp": ["bind_tcp", "connect_tcp"],
        "scopes": ["abstract_unix_socket", "signal"],
    },
    "seccomp": {"mode": "filter", "profile": "default", "sha256": "cf5ed0dc3077" + "0" * 52},
    "cgroup": {
        "version": 2,
        "memory_bytes": 512 * MIB,
        "processes": 128,
        "cpus": 1.5,
        "cpuset_cpus": "0-3",
        "swap": "none",
    },
    "storage": {"kind": "disk", "file_system": "ext4", "bytes": 67 * MIB},
    "network": {"mode": "none", "links": [{"name": "lo", "up": True}], "routes": 5, "routes_to_outside": 0},
    "missing_layers": ["landlock_scopes", "swap_limit"],
    "notes": ["files in /workspace and /tmp are on a file system of their own; those in /dev/shm count as memory"],
}
ANSWER: dict[str, Any] = {
    "id": SANDBOX,
    "runtime": "process",
    "runtime_reason": "auto: process is the cheapest runtime that is available",
    "image": None,
    "storage": "disk",
    "state": "running",
    "state_reason": None,
    "created_at": "2030-01-02T03:04:05.678901Z",
    "expires_at": "2030-01-02T04:04:05.678901Z",
    "idle_seconds": 600.0,
    "idle_counts": "executions",
    "labels": {"team": "ci", "project": "a-rather-long-name-of-one"},
    "limits": {
        "cpus": 1.5,
        "memory_mib": 512,
        "processes": 128,
        "disk_mib": 64,
        "output_bytes": 64 * MIB,
        "wall_seconds": 3600.0,
    },
    "policy": {"profile": "default", "network": {"mode": "none", "allow": []}},
    "isolation": RECEIPT,
    "executions": {"running": 1, "total": 6},
}
FACTS = {
    "id": SANDBOX,
    "state": "running",
    "runtime": "process",
    "chosen": "auto: process is the cheapest runtime that is available",
    "created": "2030-01-02T03:04:05Z",
    "expires": "2030-01-02T04:04:05Z; or after 600 s without executions",
    "executions": "1 of 6 running",
    "labels": "team=ci, project=a-rather-long-name-of-one",
    "limits": "cpus 1.5, memory 512 MiB, processes 128, output 64 MiB, time 3600 s",
    "storage": "disk, 64 MiB",
    "policy": "profile default, network none",
    "isolation": "kernel, measured when the sandbox was made:",
    "namespaces": "user, mnt, pid, net, ipc, uts, cgroup",
    "user": "uid 1900000001 of the host, no capabilities, no_new_privs",
    "landlock": "ABI 7: 3 kinds of access to files, bind_tcp, connect_tcp, abstract_unix_socket, signal",
    "seccomp": "filter default, sha256 cf5ed0dc3077…",
    "cgroup": "version 2: cpus 1.5, processors 0-3 of the host, memory 512 MiB, processes 128, swap none",
    "files": "ext4 with room for 67 MiB",
    "network": "none; links: lo; routes to outside: none",
    "missing": "landlock_scopes, swap_limit",
    "notes": "files in /workspace and /tmp are on a file system of their own; those in /dev/shm count as memory",
}


async def test_show_in_a_pipe_has_one_line_for_each_fact() -> None:
    async with fake_service() as service:
        service.answers[f"GET {BASE}"] = answer(200, ANSWER)
        ended = await bulkhead(service.url, "show", SANDBOX)
        told = await bulkhead(service.url, "show", SANDBOX, "--json")
    lines = [line.split(maxsplit=1) for line in ended.stdout.decode().splitlines()]
    assert lines[0] == ["FACT", "VALUE"]
    assert dict(lines[1:]) == FACTS
    assert list(dict(lines[1:])) == list(FACTS)
    assert json.loads(told.stdout) == ANSWER


async def test_show_on_a_terminal_of_80_columns_breaks_between_words() -> None:
    async with fake_service() as service:
        service.answers[f"GET {BASE}"] = answer(200, ANSWER)
        lines = await shown(service.url, "show", SANDBOX)
    assert [line for line in lines if len(line) > 80] == []
    words = [word for line in lines for word in line.split()]
    told = [
        word for name, text in FACTS.items() if name not in ("created", "expires") for word in (name, *text.split())
    ]
    assert set(told) <= set(words)
    assert len(lines) < 30


def facts(**changed: Any) -> dict[str, str]:
    return dict(facts_of(ANSWER | changed))


def test_a_box_shows_what_was_measured_in_it_and_what_is_only_claimed() -> None:
    receipt = {
        "tier": "vm",
        "box_id": "b1",
        "boot_seconds": 1.25,
        "measured": {"kernel": "6.12.1", "cpus": 2, "memory_bytes": 512 * MIB},
        "claimed": ["the wall itself", "limits.disk_mib"],
        "storage": {"kind": "disk", "file_system": None, "bytes": None},
        "network": {"mode": "direct", "links": [{"name": "eth0", "up": False}], "routes_to_outside": 1},
        "missing_layers": [],
    }
    policy = {"profile": "default", "network": {"mode": "direct", "allow": ["index.example.org"]}}
    found = facts(runtime="boxlite", image="python", isolation=receipt, policy=policy)
    assert (found["runtime"], found["policy"]) == (
        "boxlite, image python",
        "profile default, network direct to index.example.org",
    )
    assert found["isolation"] == "vm, measured when the sandbox was made:"
    assert found["box"] == "b1, booted in 1.25 s: kernel 6.12.1, cpus 2, memory 512 MiB"
    assert found["network"] == "direct; links: eth0 (down); routes to outside: 1"
    assert (found["missing"], found["claimed"]) == ("no layer", "the wall itself, limits.disk_mib")
    assert not {"namespaces", "user", "landlock", "seccomp", "cgroup", "files"} & set(found)


def test_what_is_weaker_than_usual_is_not_hidden() -> None:
    weaker = {
        "capabilities": {"eff": 0x2000, "prm": 0},
        "no_new_privs": False,
        "landlock": {"abi": 0, "files": [], "tcp": [], "scopes": []},
        "cgroup": {"version": 1, "memory_bytes": None, "processes": None, "cpus": None, "swap": "not limited"},
        "network": {"mode": "none", "links": [], "routes_to_outside": -1},
    }
    found = facts(isolation=RECEIPT | weaker)
    assert found["user"] == "uid 1900000001 of the host, capabilities eff 0x2000, may gain privileges"
    assert found["landlock"] == "none"
    assert found["cgroup"] == (
        "version 1: cpus not limited, memory not limited, processes not limited, swap not limited"
    )
    assert found["network"] == "none; links: none; routes to outside: unknown"


@pytest.mark.parametrize(("state", "reason"), [("creating", None), ("destroyed", "the sandbox was deleted")])
def test_a_sandbox_without_a_receipt_says_so(state: str, reason: str | None) -> None:
    found = facts(state=state, state_reason=reason, isolation=None)
    assert found["state"] == (f"{state}: {reason}" if reason else state)
    assert found["isolation"] == "no receipt: there is one while the sandbox runs"
    assert ("expires" in found) is (state != "destroyed")
    assert "namespaces" not in found


def test_a_limit_that_the_runtime_does_not_enforce_is_left_out() -> None:
    found = facts(limits=ANSWER["limits"] | {"processes": None, "disk_mib": None})
    assert "processes" not in found["limits"]
    assert found["storage"] == "disk"


def test_rules_of_the_network_are_shown_as_they_are_written() -> None:
    allow = [
        {"host": "index.example.org", "ports": [80, 443], "raw": False, "http": None},
        {"host": "2001:db8::/32", "ports": [5432], "raw": True, "http": None},
    ]
    found = facts(policy={"profile": "default", "network": {"mode": "proxy", "allow": allow}})
    assert found["policy"] == "profile default, network proxy to index.example.org:80,443, [2001:db8::/32]:5432 raw"


def test_a_network_without_any_rule_reaches_nothing() -> None:
    policy = {"profile": "default", "network": {"mode": "proxy", "allow": []}}
    assert facts(policy=policy)["policy"] == "profile default, network proxy to nothing"
