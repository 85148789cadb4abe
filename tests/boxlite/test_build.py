"""What the scripts build is whole or not there, is built once, and a failure says why. Nothing large is built here."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.boxlite.machine import SCRIPTS
from tests.kernel.host import until

PROGRAMS = [path for path in sorted(SCRIPTS.rglob("*")) if path.is_file() and path.read_bytes().startswith(b"#!")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_script_can_be_executed_and_stops_at_the_first_failure(path: Path) -> None:
    text = path.read_text()
    assert os.access(path, os.X_OK)
    if text.startswith("#!/usr/bin/env bash"):
        assert "set -euo pipefail" in text
        subprocess.run(["bash", "-n", path], check=True)


def script(cache: Path, body: str) -> list[str]:
    return [
        "bash",
        "-euo",
        "pipefail",
        "-c",
        f'. {SCRIPTS}/cache.sh; cache={cache}\n{body}\nbuild_once "$cache/it" build',
    ]


def test_finished_build_is_there_and_is_not_built_again(tmp_path: Path) -> None:
    once = script(tmp_path, f"build() {{ echo x >>{tmp_path}/count; touch part; }}")
    for _ in range(2):
        subprocess.run(once, check=True)
    assert (tmp_path / "it/part").exists()
    assert (tmp_path / "count").read_text() == "x\n"


def test_two_builds_at_once_are_one(tmp_path: Path) -> None:
    slow = script(tmp_path, f"build() {{ echo x >>{tmp_path}/count; sleep 0.5; touch part; }}")
    for process in [subprocess.Popen(slow), subprocess.Popen(slow)]:
        assert process.wait(60) == 0
    assert (tmp_path / "count").read_text() == "x\n"
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["part"]


def test_killed_build_leaves_nothing_that_counts_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    endless = script(tmp_path, "build() { touch half; exec sleep 1000; }")
    with subprocess.Popen(endless) as first:
        until(lambda: (tmp_path / "it.building/half").exists(), "it builds")
        first.send_signal(signal.SIGKILL)
    assert not (tmp_path / "it").exists()
    subprocess.run(script(tmp_path, "build() { touch whole; }"), check=True)
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["whole"]
    assert not (tmp_path / "it.building").exists()


def test_failed_step_ends_the_build_with_a_sentence_and_the_end_of_its_log(tmp_path: Path) -> None:
    failing = script(tmp_path, "build() { quietly log 'it broke' sh -c 'seq 100; exit 3'; touch never; }")
    failed = subprocess.run(failing, stderr=subprocess.PIPE, text=True, check=False)
    assert failed.returncode == 1
    said = failed.stderr.splitlines()
    assert said[0] == "bulkhead boxlite: it broke; the end of what it said:"
    assert [line.strip() for line in said[1:]] == [str(number) for number in range(81, 101)]
    assert not (tmp_path / "it").exists()


def test_check_names_what_is_missing_and_builds_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "BULKHEAD_TEST_BOXLITE_CACHE": str(tmp_path)}
    checked = subprocess.run([SCRIPTS / "build", "--check"], env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert checked.returncode == 1
    assert "is not built" in checked.stdout
    assert not list(tmp_path.iterdir())
