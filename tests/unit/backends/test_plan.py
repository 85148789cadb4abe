"""Policy and command as the launcher reads them."""

from __future__ import annotations

from app.backends.process.plan import BASE_ENVIRONMENT, command_body, create_plan, trust_environment
from app.core.limits import Limits
from app.core.models import Command, SandboxSpec, Storage
from app.core.network_rules import parse_rule
from app.core.policy import Filesystem, Network, Policy
from app.launcher.protocol import unpack_command

MIB = 1 << 20


def test_a_plan_carries_names_numbers_and_narrower_paths() -> None:
    limits = Limits(cpus=0.5, memory_mib=100, processes=7, disk_mib=20)
    policy = Policy(filesystem=Filesystem(("/usr",), ("/workspace",)), loopback_tcp=True)
    plan = create_plan("one", SandboxSpec("process", limits, policy))
    assert (plan.sandbox_id, plan.template, plan.filter_name) == ("one", "host", "loopback")
    assert (plan.cpu_millis, plan.memory_bytes, plan.disk_bytes, plan.processes) == (500, 100 * MIB, 20 * MIB, 7)
    assert (plan.read_only, plan.read_write, plan.loopback_tcp) == (["/usr"], ["/workspace"], True)


def test_a_plan_says_whether_files_are_on_a_disk() -> None:
    on_disk = {
        kind: create_plan("one", SandboxSpec("process", Limits(), Policy(), storage=kind)).on_disk for kind in Storage
    }
    assert on_disk == {Storage.MEMORY: False, Storage.DISK: True}


def test_a_plan_has_the_ports_of_all_rules_in_the_mode_proxy_alone() -> None:
    allow = ("a.example.org:8443", "b.example.org:443", "*.example.net:8443")
    networks = {mode: Network(mode, rules=tuple(map(parse_rule, allow))) for mode in ("none", "proxy")}
    plans = {
        mode: create_plan("one", SandboxSpec("process", Limits(), Policy(network=network))).ports
        for mode, network in networks.items()
    }
    assert plans == {"none": [], "proxy": [443, 8443]}


def test_programs_are_told_where_certificates_are_if_the_sandbox_has_an_authority() -> None:
    own, bundle = "/etc/ssl/certs/0.0", "/etc/ssl/cert.pem"
    facts = {"trust_stores": f"{own},{bundle},/etc/ssl/certs/java/cacerts", "trust_bundle": bundle}
    assert trust_environment(facts) == {
        "SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle, "NODE_EXTRA_CA_CERTS": own
    }  # fmt: skip
    assert trust_environment({"uid": "1"}) == {}


def test_a_part_of_a_cpu_is_never_rounded_to_none() -> None:
    assert create_plan("one", SandboxSpec("process", Limits(cpus=0.0001), Policy())).cpu_millis == 1


def test_an_environment_is_built_from_nothing_of_ours_and_the_commands_own_wins() -> None:
    argv, env, workdir = unpack_command(command_body(Command(("a", "b c"), {"HOME": "/x", "ü": "ö="}, "/tmp")))
    assert (argv, workdir) == ([b"a", b"b c"], b"/tmp")
    said = dict(item.decode().partition("=")[::2] for item in env)
    assert said == {**BASE_ENVIRONMENT, "HOME": "/x", "ü": "ö="}
    assert len(env) == len(said), "no name twice"
