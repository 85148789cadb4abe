from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.backend import CommandLimits
from app.core.commands import NUMBERS, check_command, check_environment, check_start, signal_name, signal_number
from app.core.errors import CapabilityMissing, InvalidRequest
from app.core.models import Command, Stdin, Terminal
from tests.null_backend import NullBackend
from tests.processor_time import cost

LIMITS = CommandLimits()


def wrong(argv: tuple[str, ...] = ("true",), limits: CommandLimits = LIMITS, **changes: Any) -> list[str]:
    """The pointers of what is wrong; empty when nothing is."""
    try:
        check_command(Command(argv, **changes), limits)
    except InvalidRequest as refusal:
        return [error.pointer for error in refusal.errors]
    return []


def test_ordinary_command_passes() -> None:
    assert wrong(("sh", "-c", "exit 1", "", "ä\n"), env={"A": "", "b.c": "=", "Ä": "\n"}) == []


@pytest.mark.parametrize("argv", [(), ("",), ("", "x")])
def test_command_must_name_a_program(argv: tuple[str, ...]) -> None:
    assert wrong(argv) == ["/command"]


def test_every_wrong_field_is_named() -> None:
    pointers = wrong(
        ("ok", "a\0b", "ok", "\ud800"),
        env={"": "1", "A=B": "2", "C": "\0", "a/b~c": "\0", "D": "\udfff", "fine": "3"},
        workdir="/\0",
    )
    assert pointers == [
        "/command/1",
        "/command/3",
        "/env/",
        "/env/A=B",
        "/env/C",
        "/env/a~1b~0c",
        "/env/D",
        "/workdir",
    ]


@given(st.text(st.characters(), max_size=5), st.text(st.characters(), max_size=5), st.text(st.characters(), max_size=5))
def test_any_text_passes_or_is_refused_and_the_refusal_can_be_sent(argument: str, name: str, value: str) -> None:
    try:
        check_command(Command((argument,), {name: value}, workdir=value), LIMITS)
    except InvalidRequest as refusal:
        str(refusal).encode()


def test_longest_string_of_the_kernel_passes_and_one_byte_more_does_not() -> None:
    longest = LIMITS.argument_bytes  # MAX_ARG_STRLEN with its NUL is one more
    assert wrong(("a", "x" * longest)) == []
    assert wrong(("a", "x" * (longest + 1))) == ["/command/1"]
    assert wrong(("a", "ä" * (longest // 2 + 1))) == ["/command/1"]
    assert wrong(env={"N": "x" * (longest - 2)}) == []
    assert wrong(env={"N": "x" * (longest - 1)}) == ["/env/N"]


def test_number_of_arguments_and_variables_is_limited() -> None:
    limits = CommandLimits(arguments=3, variables=2)
    assert wrong(("a", "b", "c"), limits, env={"A": "", "B": ""}) == []
    assert wrong(("a", "b", "c", "d"), limits) == ["/command"]
    assert wrong(("a",), limits, env={"A": "", "B": "", "C": ""}) == ["/env"]


def test_total_is_limited_with_nul_and_pointers() -> None:
    limits = CommandLimits(total_bytes=100)
    assert wrong(("a" * 91,), limits) == []
    assert wrong(("a" * 92,), limits) == ["/command"]
    assert wrong(("a" * 50,), limits, env={"N": "x" * 30}) == []
    assert wrong(("a" * 50,), limits, env={"N": "x" * 31}) == ["/command"]


@pytest.mark.parametrize("workdir", ["", "/" + "a" * 4095])
def test_impossible_workdir_is_refused(workdir: str) -> None:
    assert wrong(workdir=workdir) == ["/workdir"]


def test_names_that_mean_something_to_the_runtime_are_not_for_clients() -> None:
    limits = CommandLimits(reserved=frozenset({"BOXLITE_EXECUTOR", "A=B"}))
    assert wrong(limits=limits, env={"BOXLITE_EXECUTOR": "", "OTHER": "", "boxlite_executor": ""}) == [
        "/env/BOXLITE_EXECUTOR"
    ]
    assert wrong(env={"BOXLITE_EXECUTOR": ""}) == []


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, []),
        ({"stdin": Stdin.OPEN}, ["stdin"]),
        ({"tty": Terminal(1, 1)}, ["pty"]),
        ({"stdin": Stdin.OPEN, "tty": Terminal(1, 1)}, ["pty", "stdin"]),
    ],
)
def test_what_a_command_needs_is_refused_where_the_runtime_has_it_not(
    changes: dict[str, Any], missing: list[str]
) -> None:
    check_start(Command(("true",), **changes), NullBackend().info)
    poor = NullBackend(capabilities=frozenset()).info
    try:
        check_start(Command(("true",), **changes), poor)
    except CapabilityMissing as refusal:
        assert (refusal.missing, refusal.runtime) == (missing, "process")
    else:
        assert missing == []


def test_a_wrong_field_is_named_before_a_missing_capability() -> None:
    with pytest.raises(InvalidRequest):
        check_start(Command((), tty=Terminal(1, 1)), NullBackend(capabilities=frozenset()).info)


def test_flood_of_variables_or_arguments_is_refused_quickly() -> None:
    env = {f"V{n}": "x" for n in range(100_000)}
    argv = ("x",) * 100_000
    assert wrong(argv, env=env) == ["/command", "/env"]
    assert cost(lambda: wrong(argv, env=env)) < 0.2, "each of them was looked at"


def test_largest_legal_command_is_checked_within_a_blink() -> None:
    env = {f"V{n}": "x" for n in range(LIMITS.variables)}
    argv = ("x",) * LIMITS.arguments
    assert wrong(argv, env=env) == []
    assert cost(lambda: wrong(argv, env=env)) < 0.5


@pytest.mark.parametrize("number", range(1, 32))
def test_signal_names_are_the_kernels(number: int) -> None:
    assert signal_number(signal_name(number)) == number
    assert getattr(signal, signal_name(number)) == number
    assert signal_number(signal_name(number).lower().removeprefix("sig")) == number


@pytest.mark.parametrize("bad", ["", "SIG", "SIGSIGINT", "SIGNOPE", "2", "SIGRTMIN"])
def test_unknown_signal_is_none(bad: str) -> None:
    assert signal_number(bad) is None


def test_real_time_signals_have_a_name_for_people() -> None:
    assert (signal_name(34), signal_name(36), signal_name(33)) == ("SIGRTMIN+0", "SIGRTMIN+2", "SIG33")
    assert len(NUMBERS) == 31


def test_an_environment_that_no_command_could_have_is_refused_for_a_sandbox() -> None:
    limits = CommandLimits(argument_bytes=100, total_bytes=1000)
    assert not check_environment({f"v{n}": "x" * 80 for n in range(10)}, limits)
    (error,) = check_environment({f"v{n}": "x" * 80 for n in range(11)}, limits)
    assert (error.pointer, "1000" in error.detail) == ("/env", True)
