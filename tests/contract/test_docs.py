"""The documents are right where a program can tell: steps, tests, links, files, commands, settings and metrics."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from app.backends.boxlite.backend import CAPABILITIES as BOXLITE
from app.backends.process.backend import ProcessBackend
from app.cli.parser import parse
from app.core.addresses import REASONS
from app.core.backend import Backend, ExecutionHandle, SandboxHandle
from app.core.capabilities import Capability
from app.core.files import Files
from app.egress.reasons import Reason, sentence
from app.launcher.config import OPTIONAL_LAYERS
from app.launcher.kernel.allowed_arguments import FCNTL_COMMANDS, IOCTL_COMMANDS, PRCTL_OPTIONS, SOCKET_OPTIONS
from app.launcher.sandbox import confine, lockdown
from app.telemetry import Telemetry
from tests.require import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
STEPS = [step.__name__ for step in (*confine.AHEAD, *confine.FROM_PLAN, *confine.LOCKDOWN, *confine.PROOF)]
ISOLATION = (ROOT / "docs/isolation.md").read_text()
SCRIPTS = sorted([*(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci/run"])

each_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text: str) -> str:
    """Without blocks of code, where brackets and backticks mean something else."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# --- isolation.md and confine.py


def test_every_step_has_its_section_in_the_order_of_the_list() -> None:
    assert re.findall(r"^### `(\w+)`$", ISOLATION, re.MULTILINE) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_section_of_a_step_says_what_is_lost_without_it_and_which_test_proves_it(step: str) -> None:
    section = re.split(r"^##+ ", ISOLATION.split(f"### `{step}`\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    assert "*Left out*" in section
    assert re.search(r"`tests/[\w/]+\.py::\w+`", section), f"{step}: no test is named"


def test_numbers_of_descriptors_are_those_of_the_code() -> None:
    """The limit of a process, and what the threat model makes of it."""
    section = ISOLATION.split("### `set_limits`\n", 1)[1].split("### ", 1)[0]
    soft, hard = f"{lockdown.NOFILE_SOFT:,}", f"{lockdown.NOFILE_HARD:,}"
    assert re.findall(r"([\d,]+) descriptors \(the hard limit ([\d,]+)", section) == [(soft, hard)]
    threats = (ROOT / "docs/threat-model.md").read_text()
    assert set(re.findall(r"processes (?:with|times) ([\d,]+) descriptors", threats)) == {hard}


# --- tests that are named


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@each_document
def test_every_test_that_is_named_exists(path: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text()):
        assert (ROOT / file).is_file(), f"{file} does not exist"
        assert name in functions(ROOT / file), f"{file} has no {name}"


# --- files and links


def slug_of(heading: str) -> str:
    """As GitHub makes the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug_of(heading) for heading in re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)}


@each_document
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        goal = path if not file else (path.parent / file).resolve()
        assert goal.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(goal), f"{target}: there is no such heading"


@each_document
def test_every_file_that_is_named_exists(path: Path) -> None:
    for name in re.findall(r"`((?:app|tests|docs|scripts|benchmarks|\.ci)/[\w./-]*)`", path.read_text()):
        assert (ROOT / name).exists(), f"{name} does not exist"


def test_every_file_of_the_launcher_stands_in_the_architecture() -> None:
    section = (ROOT / "docs/architecture.md").read_text().split("### The launcher's files\n", 1)[1].split("\n## ", 1)[0]
    launcher = ROOT / "app/launcher"
    files = {str(path.relative_to(launcher)) for path in launcher.rglob("*.py") if path.name != "__init__.py"}
    assert set(re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE)) == files


def test_every_file_that_serves_stands_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    files = [path.name for path in (ROOT / "app/serving").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in files if f"`app/serving/{name}`" not in text] == []


@pytest.mark.parametrize("protocol", [Backend, SandboxHandle, Files, ExecutionHandle])
def test_table_of_the_contract_has_every_member_of_its_protocols(protocol: type) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    (row,) = re.findall(rf"^\| `{protocol.__name__}` \| [^|]+ \| (.+) \|$", text, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == [name for name in vars(protocol) if not name.startswith("_")]


@each_document
def test_only_the_architecture_has_a_picture_of_the_processes(path: Path) -> None:
    """A second one would be forgotten when the first one changes. Boxes and arrows are not in any other document."""
    assert path.name == "architecture.md" or not set("─▶◀│┌└") & set(path.read_text())


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# --- commands


def commands_in(text: str) -> Iterator[list[str]]:
    """The words after `bulkhead` wherever it is called: in a block of code, or between backticks."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose(text))
    for line in lines:
        for call in re.findall(r"(?:^|[\s/(;&|])bulkhead ([a-z].*)", line):
            yield re.split(r"[\s);:]+", call)


def help_of(*words: str) -> str:
    """The help of a command; SystemExit with another status than 0 when there is none."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        try:
            parse([*words, "-h"])
        except SystemExit as left:
            assert not left.code, f"there is no `bulkhead {' '.join(words)}`"
    return said.getvalue()


@each_document
def test_every_command_that_is_shown_exists_with_its_options(path: Path) -> None:
    for words in commands_in(path.read_text()):
        name = words[:2] if words[0] == "key" and len(words) > 1 else words[:1]
        text = help_of(*name)
        for word in words[len(name) :]:
            if word in {"--", "|", "#", ";", "&&"}:
                break
            option = word.strip("[]`,").partition("=")[0]
            if option.startswith("--"):
                assert option in text, f"`bulkhead {' '.join(name)}` has no {option}"


def test_commands_are_found_in_every_form() -> None:
    text = (
        "see `bulkhead key new NAME`\n```\n$ bulkhead run -- x\necho a | bulkhead exec b\nx=$(bulkhead create)\n```\n"
    )
    assert [words[0] for words in commands_in(text)] == ["run", "exec", "create", "key"]


# --- words of other documents


@each_document
def test_every_setting_that_is_named_is_one(path: Path) -> None:
    settings = (ROOT / "docs/settings.md").read_text()
    for name in re.findall(r"\bBULKHEAD_[A-Z_]*[A-Z]\b", path.read_text()):
        others = name.startswith(("BULKHEAD_CLIENT", "BULKHEAD_TEST"))
        assert others or f"`{name}`" in settings, f"{name} does not stand in docs/settings.md"


def test_every_metric_is_explained_and_no_other() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    telemetry = Telemetry()
    telemetry.watch([])
    kinds = re.findall(r"^# TYPE (\w+) ", telemetry.render().decode(), re.MULTILINE)
    assert sorted(re.findall(r"^\| `(bulkhead_\w+)` \|", text, re.MULTILINE)) == sorted(kinds)


def test_every_layer_that_may_be_given_up_is_named() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    assert [layer for layer in OPTIONAL_LAYERS if f"`{layer}`" not in text] == []


def test_every_option_and_command_that_the_filter_allows_is_told() -> None:
    text = (ROOT / "docs/isolation.md").read_text()
    tables = (SOCKET_OPTIONS, IOCTL_COMMANDS, FCNTL_COMMANDS, PRCTL_OPTIONS)
    assert [name for table in tables for name in table if f"`{name}`" not in text] == []


# --- what people start with


HOSTS_OWN = {
    "access-lists": "a file system has them or not",
    "time-stamps": "a kernel has the setting for each network namespace or not",
    "flushes": "a host's /usr is on a disk that counts its flushes or not",
    "cgroup1": "a host mounts version 1 or version 2",
    "ia32": "a kernel has it or not",
    "processors": "a host has more than one or not",
}
HOSTS_OWN_KINDS = ("attack:", "freezer")  # a kernel has them or not: "attack:NAME", "freezer1"


def test_ci_demands_all_that_tests_ask_for_and_a_host_can_get_and_nothing_else() -> None:
    """Else a feature that was forgotten there is skipped for ever, and nobody notices."""
    demanded = re.search(r"BULKHEAD_TEST_REQUIRE:-([\w,-]+)", (ROOT / ".ci/run").read_text())
    assert demanded
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    asked = set(re.findall(r'\brequire\(\s*"([\w-]+)",', tests)) | set(PROGRAMS)
    assert set(demanded[1].split(",")) == asked - set(HOSTS_OWN)


def test_feature_that_a_test_asks_for_is_written_there_by_its_name() -> None:
    """Else the test above does not see it."""
    own = {ROOT / "tests/require.py", ROOT / "tests/contract/test_require.py"}
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path not in own}
    other = r'\brequire\((?!\s*"|\'|f"(?:' + "|".join(HOSTS_OWN_KINDS) + r")\{)[^)\n]*"
    unnamed = {path: re.findall(other, text) for path, text in texts.items()}
    assert {path: calls for path, calls in unnamed.items() if calls} == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_that_tests_run_is_installed_where_it_is_missing(program: str) -> None:
    install = (ROOT / "scripts/install").read_text()
    assert re.search(rf"command -v {program} |[(|]{program}\|", install), "neither always nor on demand"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_script_can_be_executed_and_stops_at_the_first_failure(path: Path) -> None:
    text = path.read_text()
    assert os.access(path, os.X_OK)
    if text.startswith("#!/usr/bin/env bash"):
        assert "set -euo pipefail" in text
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_make_help_shows_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z]+):.* ## .+", makefile, re.MULTILINE))
    assert targets == set(re.findall(r"^\.PHONY: (.+)", makefile, re.MULTILINE)[0].split())


def test_every_capability_stands_in_the_table_and_each_runtime_has_those_that_it_says() -> None:
    rows = re.findall(
        r"^\| `([a-z_]+)` \| [^|]+ \| (yes|no|where [^|]+) \| ([^|]+) \|$",
        (ROOT / "docs/api.md").read_text(),
        re.MULTILINE,
    )
    assert [name for name, _, _ in rows] == list(Capability)
    assert {name for name, process, _ in rows if process == "yes"} == ProcessBackend(None).info.capabilities
    depends = {Capability.NETWORK_PROXY, Capability.SECRETS}
    assert {name for name, process, _ in rows if process not in {"yes", "no"}} == depends
    assert {name for name, _, boxlite in rows if boxlite == "yes"} == BOXLITE
    assert {name for name, _, boxlite in rows if boxlite not in {"yes", "no"}} == {
        Capability.NETWORK_DIRECT,
        Capability.NETWORK_PROXY,
    }


def test_every_reason_of_a_refused_connection_is_explained_in_its_own_words() -> None:
    page = (ROOT / "docs/api.md").read_text().partition("| `reason` | Why |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| (`[a-z_`, ]+`) \| (.+) \|$", page, re.MULTILINE))
    of_addresses = next(names for names in rows if names.count("`") > 2)
    assert set(re.findall("`([a-z_]+)`", of_addresses)) == set(REASONS)
    del rows[of_addresses]
    assert {name.strip("`") for name in rows} == set(Reason)
    for name, told in rows.items():
        assert told.startswith(sentence(name.strip("`"))), name
