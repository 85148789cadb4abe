"""What the suites share that run against every runtime."""

from __future__ import annotations

import os

import pytest

from tests.contract.kinds import KINDS, MACHINE, Kind

# A test of files takes ten seconds in a box of the machine, whose processor is emulated. All run over the double, whose
# boxes run the same scripts; in real ones these do, once each, or all with BULKHEAD_TEST_WHOLE=1 (15 minutes).
OF_FILES = ("test_files.py", "test_trees.py")
IN_REAL_BOXES = frozenset(
    {
        "test_file_is_read_as_it_was_written_and_a_command_sees_it",
        "test_name_that_is_not_utf8_is_kept",
        "test_something_else_than_a_file_is_wrong_type_at_once",
        "test_links_are_followed_and_stay_links",
        "test_conditional_writes_hold_or_change_nothing",
        "test_of_writes_that_want_to_be_the_first_exactly_one_is",
        "test_client_that_hangs_up_in_the_middle_leaves_the_old_file",
        "test_delete_of_files_and_trees",
        "test_list_shows_what_is_there",
        "test_tree_comes_out_as_it_went_in",
        "test_refused_entry_is_named_and_nothing_of_the_archive_is_left",
        "test_archive_whose_client_hangs_up_leaves_nothing",
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
        if item.path.name in OF_FILES and "[machine" in item.name:
            name = item.name.partition("[")[0]
            if name not in wanted:
                left_out.append(item)
            wanted.discard(name)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
