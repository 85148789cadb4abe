"""Tests of the contract suite, in a real box that they share: a boot takes longer than what they do in it.

Those that end their box, or are about its boot, have one each (`IN_REAL_BOXES` in tests/contract/conftest.py).
"""

from __future__ import annotations

import pytest

from tests.boxlite.machine import Machine
from tests.contract import test_backend, test_files, test_pausing, test_run_in_sandbox, test_trees
from tests.contract.files_service import one_file_room
from tests.contract.kinds import KINDS, MACHINE, Kind
from tests.contract.test_backend import one_room

pytestmark = pytest.mark.timeout(600)  # for all of them, on an emulated processor that others want too

EXECUTIONS = (
    test_backend.test_environment_is_the_commands_over_the_runtimes_own_and_nothing_of_ours,
    test_backend.test_channels_are_apart_and_both_complete,
    test_backend.test_log_that_takes_no_more_does_not_hold_the_program_up,
    test_backend.test_stdin_arrives_whole_in_order_and_ends,
    test_backend.test_what_comes_after_the_program_closed_stdin_is_discarded,
    test_backend.test_kill_does_not_wait_for_readers_of_an_endless_program,
    test_pausing.test_a_runtime_that_cannot_pause_says_so,
)
FILES = (
    test_run_in_sandbox.test_run_puts_files_feeds_stdin_and_brings_output_and_files_back,
    test_files.test_name_that_is_not_utf8_is_kept,
    test_files.test_links_are_followed_and_stay_links,
    test_files.test_conditional_writes_hold_or_change_nothing,
    test_files.test_of_writes_that_want_to_be_the_first_exactly_one_is,
    test_files.test_client_that_disconnects_in_the_middle_leaves_the_old_file,
    test_files.test_delete_of_files_and_trees,
    test_trees.test_list_shows_what_is_there,
    test_trees.test_tree_comes_out_as_it_went_in,
    test_trees.test_refused_entry_is_named_and_nothing_of_the_archive_is_left,
    test_trees.test_archive_whose_client_disconnects_leaves_nothing,
)


@pytest.fixture
def kind(machine: Machine) -> Kind:
    MACHINE.machine = machine
    (found,) = [kind for kind in KINDS if kind.name == "machine"]
    return found


async def test_executions_in_one_box(kind: Kind) -> None:
    async with one_room(kind):
        for test in EXECUTIONS:
            print(test.__name__)  # shown when it fails
            await test(kind)


async def test_files_in_one_box(kind: Kind) -> None:
    async with one_file_room(kind):
        await test_files.test_file_is_read_as_it_was_written_and_a_command_sees_it(kind, 4096)
        for test in FILES:
            print(test.__name__)
            await test(kind)
