"""The double answers what the real server answered: recorded conversations, played against it.

`recordings/README.md` says where they come from. Left to the double's own tests are those that depend on a certain
shell, on minutes of waiting or on megabytes: terminals, the reaper, readers that lag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.boxlite.client import box_double, plain_http
from tests.boxlite.double import Settings
from tests.boxlite.replay import RECORDINGS, SHARED_NAME, Replay

MISSING = {"/no/such/layout", "127.0.0.1:9/nothing:1"}
IDLE = ["sleep", "infinity"]


@dataclass(frozen=True)
class Played:
    """How one recording is played: pauses of its commands shortened, another `ps`, and settings that keep the order."""

    rewrite: tuple[tuple[str, str], ...] = ()
    silent: frozenset[int] = frozenset()  # steps whose output depends on busybox, on pids or on the host
    settings: dict[str, Any] = field(default_factory=dict)


PS = (r"ps \| ", "ps ax | ")
PLAYED = {
    "attach_after_end": Played(),
    "attach_bad_frames": Played(((r"sleep\", \"args\": \[\"3\"", r'sleep", "args": ["0.3"'),)),
    "attach_basic": Played((("sleep 1", "sleep 0.3"),)),
    "attach_read_only": Played((("sleep 4", "sleep 1"),)),
    "attach_refused": Played(),
    "attach_second_client": Played((("sleep 15", "sleep 1"),)),
    "attach_signals": Played((("sleep 0.2", "sleep 0.05"),)),
    "attach_stdin": Played((("sleep 1", "sleep 0.3"),)),
    "auto_resume_false": Played(),
    "background_child": Played((("sleep 6", "sleep 1"),)),
    "background_child_stuck": Played((PS,)),
    "bad_image": Played(),
    "box_with_cmd": Played(silent=frozenset({7})),
    "box_without_cmd": Played(),
    "config_me_auth": Played(),
    "create_and_read": Played(),
    "create_refusals": Played(),
    "delete_running": Played(),
    "empty_cmd": Played(),
    "exec_delete_running": Played((PS,), silent=frozenset({8})),
    "exec_exit_codes": Played(),
    "exec_fields": Played(silent=frozenset({1})),
    "exec_not_found": Played(),
    "exec_stdin_field": Played((("sleep 2", "sleep 0.5"),)),
    "exec_timeout": Played(
        ((r'timeout_seconds": 1', 'timeout_seconds": 0.3'), ("sleep 8", "sleep 1"), ("sleep 1;", "sleep 0.1;")),
        settings={"timeout_grace": 0.3},
    ),
    "framework_errors": Played(),
    "hang_up_boot_exec": Played(silent=frozenset({8}), settings={"boot_seconds": 0.3}),
    "hang_up_boot_start": Played(settings={"boot_seconds": 0.3}),
    "hang_up_delete": Played(),
    "hang_up_stop": Played(settings={"stop_grace": 0.3}),
    "main_command_ends": Played((("sleep 6", "sleep 0.5"),), settings={"settle_seconds": 0.5}),
    "main_command_missing": Played(),
    "main_session": Played((("sleep 3", "sleep 0.5"),)),
    "names_and_ids": Played(),
    "output_not_utf8": Played(silent=frozenset({3})),
    "resize_without_tty": Played(((r"sleep\", \"args\": \[\"3\"", r'sleep", "args": ["0.5"'),)),
    "server_ended": Played((("sleep 1", "sleep 0.1"),), silent=frozenset({3, 8, 12, 17})),
    "server_killed": Played((("sleep 1", "sleep 0.1"),), silent=frozenset({5, 13, 16, 23})),
    "server_killed_while_booting": Played(settings={"boot_seconds": 0.3}),
    "shell_as_main": Played((("sleep 1;", "sleep 0.3;"),), silent=frozenset({3})),
    "stdin_to_dead_end": Played((("sleep 4", "sleep 1"),)),
    "stop_during_exec": Played(),
    "vm_killed": Played(settings={"settle_seconds": 0.5}),
}


def test_every_recording_is_played() -> None:
    assert {path.stem for path in RECORDINGS.glob("*.json")} == set(PLAYED)


@pytest.mark.parametrize("name", PLAYED)
async def test_the_double_answers_as_recorded(name: str) -> None:
    """A recording has its own time: on a busy machine a program may have ended before the next step. A double that
    answers otherwise fails each time."""
    for tries_left in (2, 1, 0):
        try:
            await play(name)
        except (AssertionError, TimeoutError):
            if not tries_left:
                raise
        else:
            return


async def play(name: str) -> None:
    played = PLAYED[name]

    def rewrite(body: str) -> str:
        for pattern, shorter in played.rewrite:
            body = re.sub(pattern, shorter, body)
        return body

    settings = Settings(missing_images=MISSING, **played.settings)
    async with box_double(settings) as double:
        shared = await double.seed(SHARED_NAME, start=True, rootfs_path="/images/busybox", cmd=IDLE)
        async with plain_http(double) as http:
            replay = Replay(double, http, shared.id, rewrite=rewrite, silent=played.silent, hang_up_seconds=0.1)
            await replay.play(name)
