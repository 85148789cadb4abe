"""Which tests of tests/kernel are run on control groups of version 2: those in which the version matters."""

from __future__ import annotations

LIMITS = (
    "test_group_files.py::test_limits_are_in_force_in_the_group_of_the_sandbox",
    "test_group_files.py::test_limit_of_an_execution_is_in_force_in_its_group",
    "test_memory_limit.py::test_program_ends_as_oom_just_above_the_limit_and_not_just_below",
    "test_memory_limit.py::test_execution_with_a_limit_of_its_own_ends_there",
    "test_memory_limit.py::test_files_count_towards_the_limit",
    "test_memory_limit.py::test_sandbox_whose_files_have_filled_its_memory_lives_on",
    "test_memory_limit.py::test_the_smallest_sandbox_runs_programs",
    "test_processors.py::test_mask_is_the_limit_rounded_up_and_the_receipt_tells_it",
    "test_processors.py::test_mask_cannot_be_widened",
    "attacks/test_exhaustion.py::test_memory_bomb_is_told_as_oom_of_this_sandbox_alone[children]",
    "attacks/test_exhaustion.py::test_socket_buffers_are_limited",
    "attacks/test_exhaustion.py::test_bomb_stops_exactly_at_the_limit",
    "attacks/test_exhaustion.py::test_limit_of_one_process_lets_exactly_one_run",
    "attacks/test_exhaustion.py::test_processor_hog_stays_at_its_quota",
    "test_execution_limits.py::test_processor_time_of_all_its_processes_has_a_limit",
    "test_execution_limits.py::test_memory_has_a_limit_of_its_own_and_the_neighbours_live",
)
OOM = (
    "test_endings.py::test_oom_is_told_when_a_child_was_killed_and_the_program_failed",
    "test_endings.py::test_a_loop_of_oom_kills_is_ended_before_it_fills_the_kernels_log",
)
KILLS = (
    "test_endings.py::test_a_timeout_ends_what_does_not_want_to_end",
    "test_lifecycle.py::test_delete_of_an_execution_ends_its_daemons_and_nothing_of_its_neighbours",
    "test_lifecycle.py::test_delete_of_an_execution_outruns_a_fork_bomb",
    "test_lifecycle.py::test_delete_of_a_sandbox_leaves_no_process_group_or_namespace",
    "test_lifecycle.py::test_groups_go_once_what_was_left_behind_has_ended",
)
USAGE = (
    "test_usage.py::test_figures_are_those_of_what_runs",
    "test_usage.py::test_sandbox_that_has_no_process_left_to_start_is_told_without_its_disk",
)
PAUSE = (
    "test_freezer.py::test_what_is_frozen_does_not_run_and_goes_on_when_thawed[2]",
    "test_freezer.py::test_a_room_that_is_killed_runs_nothing_more[2]",
    "test_freezer.py::test_one_that_is_killed_beside_another_ends_and_the_other_stays_frozen[2]",
    "test_pause.py::test_a_counter_stops_and_goes_on_with_the_next_number",
    "test_pause.py::test_a_fork_bomb_stops_and_is_ended_while_it_is_paused",
    "test_pause.py::test_deletes_beside_what_stays_paused",
    "test_pause.py::test_a_timeout_ends_what_is_paused",
    "test_pause.py::test_a_killed_worker_takes_what_is_paused_with_it",
)
OWN_LIMITS = (
    "test_own_limits.py::test_limits_are_read_in_the_control_groups_of_the_sandbox_and_of_the_execution",
    "test_own_limits.py::test_nothing_of_it_can_be_changed",
    "test_own_limits.py::test_neighbours_and_the_host_cannot_be_seen_there",
    "test_own_limits.py::test_total_memory_is_the_limit_and_available_memory_follows",
    "test_own_limits.py::test_worker_is_never_killed_for_memory_that_nobody_holds",
)
AHEAD = (
    "test_groups_ahead.py::test_groups_are_there_before_anybody_asks_for_a_sandbox",
    "test_groups_ahead.py::test_clone_ahead_that_is_killed_takes_its_groups_with_it",
)
DISKS = ("test_disks.py::test_workspace_and_tmp_share_the_disk_and_dev_shm_is_memory",)
# With a service of their own for each.
CRASHES = ("test_pause.py::test_a_killed_launcher_is_followed_by_one_that_ends_what_was_paused",)

TESTS = tuple(
    f"tests/kernel/{test}" for test in (*LIMITS, *OOM, *OWN_LIMITS, *AHEAD, *KILLS, *USAGE, *PAUSE, *DISKS, *CRASHES)
)
