"""What the suites share that run against every runtime."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.contract.kinds import KINDS, MACHINE, Kind

HERE = Path(__file__).parent

# A test takes five to ten seconds in a box of the machine, whose processor is emulated. All run over the double, whose
# boxes run the same scripts, and which is compared with recordings of the real server. In real boxes run those which
# are about what a server and a guest really do: these in a box of their own each, those of
# tests/boxlite/test_contract_real.py in one box together; or all, with BULKHEAD_TEST_WHOLE=1 (20 minutes).
IN_REAL_BOXES = frozenset(
    {
        "test_info_names_the_runtime_and_only_known_capabilities",
        "test_create_that_is_cancelled_at_any_turn_leaves_nothing",
        "test_closing_the_backend_ends_everything_and_may_be_repeated",
        "test_destroy_leaves_nothing_and_every_wait_has_an_answer",
        "test_lost_resolves_with_a_sentence_for_everyone_and_executions_are_lost",
        "test_background_child_that_holds_stdout_does_not_delay_the_exit",
        "test_kill_ends_daemons_too_and_nothing_of_other_executions",
    }
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    if chosen.name == "machine":
        MACHINE.machine = request.getfixturevalue("machine")
    chosen.check()
    return chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("BULKHEAD_TEST_WHOLE"):
        return
    wanted = set(IN_REAL_BOXES)
    left_out: list[pytest.Item] = []
    for item in items:
        if item.path.parent == HERE and "[machine" in item.name:
            name = item.name.partition("[")[0]
            if name not in wanted:
                left_out.append(item)
            wanted.discard(name)  # of a test with cases the first one
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
