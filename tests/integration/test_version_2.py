"""The running service on control groups of version 2, which the host of CI has not: tests of tests/kernel, run by
pytest in the machine of deploy/boxlite. There is one test here for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.machine_tests import MachineTests, check
from tests.integration.version_2 import TESTS

pytestmark = pytest.mark.timeout(3600)  # the first one waits for all of them


@pytest.mark.parametrize("test", TESTS, ids=lambda test: str(test).removeprefix("tests/kernel/"))
def test_on_version_2(machine_tests: MachineTests, test: str) -> None:
    machine_tests.check(test)


REPORT = """<testsuites><testsuite>
<testcase classname="tests.kernel.test_a" name="test_good"/>
<testcase classname="tests.kernel.test_a" name="test_many[1]"/>
<testcase classname="tests.kernel.test_a" name="test_many[2]"><failure message="is wrong"/></testcase>
<testcase classname="tests.kernel.test_a" name="test_fixture"><error message="is wrong"/></testcase>
<testcase classname="tests.kernel.test_a" name="test_host"><skipped message="is wrong"/></testcase>
</testsuite></testsuites>"""


def test_what_did_not_pass_there_fails_here(tmp_path: Path) -> None:
    report = tmp_path / "results.xml"
    report.write_text(REPORT)
    for good in ("test_good", "test_many[1]"):
        check(report, f"tests/kernel/test_a.py::{good}")
    for bad in ("test_many", "test_many[2]", "test_fixture", "test_host"):
        with pytest.raises(pytest.fail.Exception, match="is wrong"):
            check(report, f"tests/kernel/test_a.py::{bad}")
    for missing in ("test_a.py::test_goo", "test_b.py::test_good", "test_a.py::test_many[3]"):
        with pytest.raises(pytest.fail.Exception, match="not run"):
            check(report, f"tests/kernel/{missing}")
