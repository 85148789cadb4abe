"""What is shipped to run Bulkhead says the same everywhere, and grants no more than it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.egress.config import EgressConfig
from app.launcher.daemon.probe import CAPABILITIES
from app.launcher.kernel import seccomp
from app.launcher.kernel.syscall_table import NUMBERS
from app.settings import Settings
from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LAUNCHER_PROFILE = ROOT / "deploy/docker/launcher-seccomp.json"
BOXLITE_PROFILE = ROOT / "deploy/boxlite/seccomp.json"
UNIT_OF_EGRESS = ROOT / "deploy/systemd/bulkhead-egress.service"
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
# Worth the host, and nothing that we ship needs one of them.
NEVER = {
    "bpf", "perf_event_open", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff",
    "open_by_handle_at", "userfaultfd", "io_uring_setup", "iopl", "ioperm", "modify_ldt", "settimeofday",
    "clock_settime", "acct", "quotactl", "syslog", "add_key", "request_key", "open_tree", "open_tree_attr",
    "chroot",
}  # fmt: skip
FOR_DISKS = "MKNOD"  # a container has no nodes of loop devices
# The launcher makes the terminals of a sandbox as a file system that is mounted nowhere yet. `mount` is allowed to it
# anyway.
NEW_MOUNTS = {"fsopen", "fsconfig", "fsmount", "move_mount"}


def granted(profile: Path) -> set[str]:
    """Names that a seccomp profile allows; everything else is refused."""
    found = json.loads(profile.read_text())
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert {each["architecture"] for each in found["archMap"]} == {"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"}
    assert not any(each["subArchitectures"] for each in found["archMap"]), "no second ABI, where numbers mean others"
    assert all(rule["action"] == "SCMP_ACT_ALLOW" and rule["comment"] for rule in found["syscalls"])
    names = [name for rule in found["syscalls"] for name in rule["names"]]
    assert len(names) == len(set(names)), "a call is listed twice"
    return set(names)


def of_sandboxes() -> set[str]:
    return {name for group in seccomp.ALLOWED for name in group.split()} | set(seccomp.CONDITIONAL)


def test_the_launchers_profile_is_the_sandboxes_and_what_making_them_takes() -> None:
    """A sandbox is under both filters, so what its own allows must be allowed outside."""
    names = granted(LAUNCHER_PROFILE)
    assert of_sandboxes() <= names
    assert names - of_sandboxes() == {
        "mount", "umount2", "pivot_root", "mount_setattr", "fsopen", "fsconfig", "fsmount", "move_mount", "unshare",
        "setns", "sethostname", "keyctl", "seccomp",
    }  # fmt: skip


def test_the_servers_profile_adds_what_its_jail_takes() -> None:
    assert granted(BOXLITE_PROFILE) - of_sandboxes() == {"mount", "umount2", "pivot_root", "unshare", "seccomp"}


@pytest.mark.parametrize("profile", [LAUNCHER_PROFILE, BOXLITE_PROFILE], ids=lambda path: path.name)
def test_a_profile_names_only_calls_that_exist_and_none_of_the_worst(profile: Path) -> None:
    names = granted(profile)
    assert names <= set().union(*NUMBERS.values())
    assert not names & NEVER
    assert names & NEW_MOUNTS == (NEW_MOUNTS if profile == LAUNCHER_PROFILE else set())


# --- the compose file


def test_no_service_is_privileged_or_shares_the_hosts_namespaces() -> None:
    for name, service in SERVICES.items():
        assert "privileged" not in service, name
        for kind in ("pid", "ipc", "uts", "userns_mode"):
            assert kind not in service, name
        assert service.get("network_mode") in (None, "none"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_what_each_service_has() -> None:
    capabilities = {name: service.get("cap_add", []) for name, service in SERVICES.items()}
    assert capabilities == {
        "gateway": [],
        "launcher": ["SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "SYS_PTRACE", "CHOWN", "KILL", FOR_DISKS],
        "egress": [],
        "boxlite": ["SETFCAP"],
    }
    needed = set(capabilities["launcher"]) - {FOR_DISKS}
    assert needed == set(CAPABILITIES), "the launcher does not start without one of them"
    assert {
        name: service["device_cgroup_rules"] for name, service in SERVICES.items() if "device_cgroup_rules" in service
    } == {"launcher": ["c 10:237 rw", "b 7:* rw"]}
    assert {name: service.get("devices", []) for name, service in SERVICES.items()} == {
        "gateway": [],
        "launcher": [],
        "egress": [],
        "boxlite": ["/dev/kvm"],
    }
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]


def test_every_capability_has_its_reason_beside_it() -> None:
    lines = (ROOT / "docker-compose.yml").read_text().splitlines()
    for service in SERVICES.values():
        for capability in service.get("cap_add", []):
            (line,) = [line for line in lines if re.search(rf"- {capability}\b", line)]
            assert re.search(r" # \w.{20,}", line), f"why {capability}?"


def test_only_the_gateway_shares_the_sockets_of_the_others_and_only_to_read() -> None:
    mounts = {name: [each for each in service["volumes"] if "socket" in each] for name, service in SERVICES.items()}
    assert mounts == {
        "gateway": ["launcher-socket:/run/launcher:ro", "egress-socket:/run/egress:ro"],
        "launcher": ["launcher-socket:/run/launcher"],
        "egress": ["egress-socket:/run/egress"],
        "boxlite": [],
    }
    assert SERVICES["egress"]["volumes"] == mounts["egress"], "no state of others"


def test_only_the_egress_process_and_the_server_have_a_way_beyond_the_machine() -> None:
    """Gateway and server meet in a network without one."""
    networks = {name: service.get("networks", service.get("network_mode")) for name, service in SERVICES.items()}
    assert networks == {
        "gateway": ["default", "boxlite"],
        "launcher": "none",
        "egress": ["egress"],
        "boxlite": ["boxlite", "images"],
    }
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    assert COMPOSE["networks"] == {
        "default": {"driver_opts": {masquerade: "${GATEWAY_DIALS_OUT:-false}"}},
        "boxlite": {"internal": True},
        "images": {},
        "egress": {},
    }


def test_only_the_gateway_is_given_keys() -> None:
    for name in ("launcher", "egress"):
        environment = SERVICES[name]["environment"]
        assert (environment["BULKHEAD_API_KEYS"], environment["BULKHEAD_BOXLITE__API_KEY"]) == ("", ""), name
    readers = {unit.stem for unit in UNITS if any("/etc/bulkhead/secrets" in line for line in files_of(unit))}
    assert readers == {"bulkhead-gateway"}


def files_of(unit: Path) -> list[str]:
    return directives(unit)["EnvironmentFile"]


def test_the_profiles_that_are_named_exist() -> None:
    for service in SERVICES.values():
        for option in service["security_opt"]:
            kind, _, value = option.partition("=")
            if kind == "seccomp":
                assert (ROOT / value).is_file(), value
    shipped = (ROOT / "deploy/docker/apparmor").read_text()
    example = (ROOT / ".env.example").read_text()
    for name in ("bulkhead-launcher", "bulkhead-boxlite"):
        assert f"profile {name} " in shipped
        assert f"_APPARMOR={name}\n" in example


def test_what_the_compose_file_asks_for_is_in_the_example_and_nothing_else() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    shown = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert asked <= shown
    own = {name for name in shown if not name.startswith("BULKHEAD_")}
    assert own <= asked, "nobody reads it"


def test_the_examples_settings_are_settings() -> None:
    shown = re.findall(r"^#?(BULKHEAD_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert shown
    for name, _ in shown:
        top = name.removeprefix("BULKHEAD_").partition("__")[0].lower()
        assert top in Settings.model_fields, name


def test_base_images_are_pinned_and_the_same_everywhere() -> None:
    text = "".join((ROOT / name).read_text() for name in ("Dockerfile", "deploy/boxlite/Dockerfile"))
    both = text + (ROOT / "docker-compose.yml").read_text() + (ROOT / ".env.example").read_text()
    bases = set(re.findall(r"\bBASE(?:=|: \$\{BASE:-)([\w.:/-]+)", both))
    assert len(bases) == 1
    assert re.fullmatch(r"debian:trixie-\d{8}-slim", bases.pop())
    assert len(set(re.findall(r"\bRUST(?:=|: \$\{RUST:-)([\w.:/-]+)", both))) == 1
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert base.startswith("${") or base in ("scratch", "all"), f"{base} is not pinned by an argument"


def test_images_of_gateway_and_egress_process_are_never_root() -> None:
    before, _, stage = (ROOT / "Dockerfile").read_text().partition("AS gateway\n")
    assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["10001:10001"]
    stage = before.partition("AS egress\n")[2]
    assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["10002:10001"]
    for name in ("launcher", "egress"):
        assert SERVICES[name]["environment"]["BULKHEAD_PROCESS__GATEWAY_UID"] == 10001
    assert SERVICES["boxlite"]["group_add"] == ["10001"]


def test_scripts_of_the_images_are_programs() -> None:
    for name in ("bulkhead", "gateway-start", "launcher-start", "boxlite-start", "http-answers"):
        path = ROOT / "deploy/docker" / name
        assert path.stat().st_mode & 0o111 == 0o111, name
        assert path.read_text().startswith("#!"), name


# --- the units


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found.setdefault(name, []).append(value)
    return found


def test_the_launchers_unit_has_what_its_container_has() -> None:
    (bounding,) = directives(ROOT / "deploy/systemd/bulkhead-launcher.service")["CapabilityBoundingSet"]
    assert bounding.split() == [f"CAP_{name}" for name in SERVICES["launcher"]["cap_add"] if name != FOR_DISKS]


def test_the_launchers_unit_may_open_loop_devices_and_no_other_disk() -> None:
    """/dev of a unit has their nodes, so it makes none. systemd looks `block-loop` up in /proc/devices when the unit
    starts, and leaves the rule out if the module is not loaded yet."""
    found = directives(ROOT / "deploy/systemd/bulkhead-launcher.service")
    assert (found["Wants"], found["After"]) == (["modprobe@loop.service"], ["modprobe@loop.service"])
    assert found["DevicePolicy"] == ["closed"]
    assert found["DeviceAllow"] == ["/dev/loop-control rw", "block-loop rw"]
    assert found["Environment"][-1] == "BULKHEAD_PROCESS__STORAGE_DIR=/var/lib/bulkhead-launcher/storage"
    assert found["StateDirectory"] == ["bulkhead-launcher"]


@pytest.mark.parametrize("name", ["bulkhead-gateway", "bulkhead-egress", "boxlite"])
def test_a_unit_without_privileges_has_no_capability_and_no_root(name: str) -> None:
    found = directives(ROOT / f"deploy/systemd/{name}.service")
    assert (found["CapabilityBoundingSet"], found["NoNewPrivileges"]) == ([""], ["yes"])
    assert "User" in found or found["DynamicUser"] == ["yes"]


def test_unit_of_the_egress_process_has_every_wall_of_the_gateways() -> None:
    gateway, egress = (directives(ROOT / f"deploy/systemd/bulkhead-{name}.service") for name in ("gateway", "egress"))
    walls = {
        name for name in gateway if name.startswith(("Protect", "Private", "Restrict", "System", "Memory", "Lock"))
    }
    walls |= {"CapabilityBoundingSet", "NoNewPrivileges", "UMask", "RemoveIPC"}
    assert len(walls) > 20, "the control"
    (families,) = egress["RestrictAddressFamilies"]
    assert families == "AF_UNIX AF_INET AF_INET6"
    assert {name: egress[name] for name in walls - {"RestrictAddressFamilies"}} == {
        name: gateway[name] for name in walls - {"RestrictAddressFamilies"}
    }


def test_the_egress_process_reaches_its_own_limit_of_memory_before_that_of_its_unit_and_container() -> None:
    """At its own it says why it ends. The kernel's buffers count towards the others alone: 128 KiB a connection."""
    config = EgressConfig(0)
    settings = Settings()
    assert (config.connections, config.sandboxes) == (settings.egress.connections, settings.capacity.sandboxes)
    (unit,) = directives(UNIT_OF_EGRESS)["MemoryMax"]
    assert unit == "6G"
    assert SERVICES["egress"]["mem_limit"] == "${EGRESS_MEMORY:-6g}"
    assert config.memory_bytes + 2 * 128 * 2**10 * config.connections < 6 * 2**30
    for words in (UNIT_OF_EGRESS.read_text(), (ROOT / "docker-compose.yml").read_text()):
        assert f"its own limit is {config.memory_bytes / 2**30:.1f} GiB" in words


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    require("systemd", shutil.which("systemd-analyze") is not None, "there is no systemd-analyze")
    for unit in UNITS:  # with programs that are there: whether ours are installed is not the question
        text = re.sub(r"^ExecStart=/(opt|usr)/\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
