"""What the supervisor tells its launcher, and what it says when it cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.launcher.config import Config
from app.serving import supervisor
from app.serving.restarting import StartFailed
from app.serving.serve import serve
from app.serving.slot import NoSlot, Slot
from app.serving.supervisor import launcher_config, start_launcher
from app.settings import load_settings

MIB = 1 << 20
SLOT = Slot(-1, 5000, 4096, Path("/run/x"))


def test_the_launcher_is_told_the_operators_ceilings() -> None:
    settings = load_settings(
        limits={"memory_mib": {"ceiling": 2048}, "disk_mib": {"ceiling": 600}, "cpus": {"ceiling": 1.5, "default": 1}},
        capacity={"sandboxes": 7, "executions_running": 3, "executions_kept": 5},
        process={
            "root_paths": ["/opt/tools"],
            "accept_missing": ["swap_limit"],
            "max_file_locks": 11,
            "max_terminals": 12,
        },
    )
    config = launcher_config(settings, SLOT)
    assert (config.max_memory_bytes, config.max_disk_bytes, config.max_cpu_millis) == (2048 * MIB, 600 * MIB, 1500)
    assert (config.max_sandboxes, config.max_executions) == (7, 8)
    assert (config.max_file_locks, config.max_terminals) == (11, 12)
    assert config.root_paths == ["/usr", "/opt/tools"]
    assert config.accept_missing == ["swap_limit"]


def test_uids_of_gateway_and_egress_process_are_no_sandboxes() -> None:
    config = launcher_config(load_settings(), SLOT)
    assert (config.gateway_uid, config.gateway_gid) == (5000, 5000)
    assert (config.uid_first, config.uid_count) == (5002, 4094)
    assert (config.socket, config.run_dir) == ("/run/x/5000/launcher.sock", "/run/x/5000")
    assert config.cgroup_parent == "bulkhead/5000"


def test_there_are_never_more_sandboxes_than_uids() -> None:
    config = launcher_config(load_settings(capacity={"sandboxes": 100_000}), Slot(-1, 5000, 10, Path("/run/x")))
    assert config.max_sandboxes == 8


def test_of_etc_only_what_programs_need_is_shown() -> None:
    shown = launcher_config(load_settings(), SLOT).etc_paths
    for secret in ("shadow", "passwd", "gshadow", "ssh", "sudoers", "hosts", "resolv.conf", "ssl/private", "fstab"):
        assert not [path for path in shown if path == f"/etc/{secret}" or f"/etc/{secret}".startswith(path + "/")]


def test_a_launcher_that_does_not_start_is_a_sentence_and_no_process(capfd: pytest.CaptureFixture[str]) -> None:
    config = Config()
    config.accept_missing = ["seccomp"]  # which the launcher does not take
    with pytest.raises(StartFailed, match="the launcher did not start"):
        start_launcher(config)
    assert "not a layer that may be missing" in capfd.readouterr().err


@pytest.mark.parametrize("error", [NoSlot("none free"), StartFailed("no launcher")])
def test_a_start_that_is_refused_is_status_2_and_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        raise error

    monkeypatch.setattr(supervisor.Supervisor, "run", run)
    assert serve(port=0) == 2
    assert capsys.readouterr().err == f"bulkhead: {error}\n"


def test_a_wrong_setting_is_status_2_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BULKHEAD_NONSENSE", "1")
    assert serve() == 2
    assert "BULKHEAD_NONSENSE is not a setting" in capsys.readouterr().err


def test_a_launcher_of_its_own_listens_where_and_for_whom_it_was_told() -> None:
    settings = load_settings(process={"launcher_socket": "/run/y/launcher.sock", "gateway_uid": 10_001})
    config = launcher_config(settings, SLOT)
    assert (config.socket, config.run_dir) == ("/run/y/launcher.sock", "/run/x/5000")
    assert (config.gateway_uid, config.gateway_gid) == (10_001, 10_001)
    assert (config.uid_first, config.uid_count) == (5002, 4094)
