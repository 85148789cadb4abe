"""What the suites share that run against every runtime."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.contract.kinds import KINDS, MACHINE, Kind

HERE = Path(__file__).parent

# A test takes five to ten seconds in a box of the machine, whose processor is emulated. All run over the double, whose
# boxes run the same scripts, and which is compared with recordings of the real server. In real boxes run these, which
# are about what a server and a guest really do; or all, with BULKHEAD_TEST_WHOLE=1 (20 minutes).
IN_REAL_BOXES = frozenset(
    {
        # test_backend.py
        "test_info_names_the_runtime_and_only_known_capabilities",
        "test_create_that_is_cancelled_at_any_turn_leaves_nothing",
        "test_closing_the_backend_ends_everything_and_may_be_repeated",
        "test_environment_is_the_commands_over_the_runtimes_own_and_nothing_of_ours",
        "test_destroy_leaves_nothing_and_every_wait_has_an_answer",
        "test_lost_resolves_with_a_sentence_for_everyone_and_executions_are_lost",
        "test_channels_are_apart_and_both_complete",
        "test_log_that_takes_no_more_does_not_hold_the_program_up",
        "test_background_child_that_holds_stdout_does_not_delay_the_exit",
        "test_stdin_arrives_whole_in_order_and_ends",
        "test_what_comes_after_the_program_closed_stdin_is_discarded",
        "test_kill_ends_daemons_too_and_nothing_of_other_executions",
        "test_kill_does_not_wait_for_readers_of_an_endless_program",
        # test_run_in_sandbox.py
        "test_run_puts_files_feeds_stdin_and_brings_output_and_files_back",
        # test_pausing.py
        "test_a_runtime_that_cannot_pause_says_so",
        # test_files.py, test_trees.py
        "test_file_is_read_as_it_was_written_and_a_command_sees_it",
        "test_name_that_is_not_utf8_is_kept",
        "test_links_are_followed_and_stay_links",
        "test_conditional_writes_hold_or_change_nothing",
        "test_of_writes_that_want_to_be_the_first_exactly_one_is",
        "test_client_that_disconnects_in_the_middle_leaves_the_old_file",
        "test_delete_of_files_and_trees",
        "test_list_shows_what_is_there",
        "test_tree_comes_out_as_it_went_in",
        "test_refused_entry_is_named_and_nothing_of_the_archive_is_left",
        "test_archive_whose_client_disconnects_leaves_nothing",
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
