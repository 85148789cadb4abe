"""The table of limits: what is chosen of it, and that everything else that tells of limits takes it from there."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backends.boxlite.backend import CAPABILITIES as BOXLITE
from app.backends.process.backend import CAPABILITIES as PROCESS
from app.cli import bodies
from app.core.capabilities import Capability
from app.core.errors import BulkheadError, InvalidRequest, LimitTooHigh
from app.core.limits import LIMITS, LimitRange, Limits, choose_limits, lower

APP = Path(__file__).resolve().parents[3] / "app"
RANGES = {name: LimitRange(getattr(Limits(), name), getattr(Limits(), name) * 2) for name in LIMITS}


def test_limits_that_are_not_asked_for_are_the_operators() -> None:
    assert choose_limits({}, RANGES) == Limits()
    assert choose_limits(dict.fromkeys(LIMITS), RANGES) == Limits()
    assert choose_limits({"cpus": 2}, RANGES).cpus == 2.0


@pytest.mark.parametrize(("number", "text"), [(67108864, "67108864"), (0.5, "0.5"), (1e300, "1e+300"), (1e15, "1e+15")])
def test_a_number_is_told_in_few_digits(number: float, text: str) -> None:
    assert str(LimitTooHigh("/limits/cpu_seconds", number, 3600)) == (
        f"/limits/cpu_seconds is {text}, the ceiling is 3600"
    )


@given(st.dictionaries(st.sampled_from(list(LIMITS)), st.floats(allow_nan=True, allow_infinity=True)))
def test_limits_are_always_between_floor_and_ceiling(asked: dict[str, float | None]) -> None:
    try:
        limits = choose_limits(asked, RANGES)
    except (InvalidRequest, LimitTooHigh):
        return
    for field in fields(Limits):
        value = getattr(limits, field.name)
        assert LIMITS[field.name].floor <= value <= RANGES[field.name].ceiling
        assert type(value) is type(getattr(Limits(), field.name))


@pytest.mark.parametrize("name", LIMITS)
def test_limit_above_its_ceiling_or_below_its_floor_names_the_field(name: str) -> None:
    ceiling, floor = RANGES[name].ceiling, LIMITS[name].floor
    with pytest.raises(LimitTooHigh) as refusal:
        choose_limits({name: math.nextafter(ceiling, math.inf)}, RANGES)
    assert (refusal.value.pointer, refusal.value.ceiling) == (f"/limits/{name}", ceiling)
    errors: list[BulkheadError] = []
    for value in (math.nextafter(floor, 0), 0, -1, math.nan, -math.inf):
        with pytest.raises(InvalidRequest) as wrong:
            choose_limits({name: value}, RANGES)
        assert [e.pointer for e in wrong.value.errors] == [f"/limits/{name}"]
        errors.append(wrong.value)
    assert len(errors) == 5


def test_a_runtimes_own_ceiling_counts_where_it_is_below_the_operators() -> None:
    ranges = {"cpus": LimitRange(2, 8), "memory_mib": LimitRange(512, 4096), "disk_mib": LimitRange(64, 128)}
    assert lower(ranges, {"cpus": 1, "memory_mib": 1024, "disk_mib": 10_000, "other": 1}) == {
        "cpus": LimitRange(1, 1),
        "memory_mib": LimitRange(512, 1024),
        "disk_mib": LimitRange(64, 128),
    }
    assert lower(ranges, {}) == ranges


def test_a_limit_that_the_runtime_does_not_enforce_is_shown_as_none() -> None:
    limits = Limits(cpus=2)
    assert limits.enforced(PROCESS) == {name: getattr(limits, name) for name in LIMITS}
    assert limits.enforced(BOXLITE) == limits.enforced(PROCESS) | {"processes": None}
    none = {"cpus": None, "memory_mib": None, "processes": None, "disk_mib": None}
    assert limits.enforced(frozenset()) == limits.enforced(PROCESS) | none, "the core does the two others"


def test_every_capability_of_a_limit_is_in_the_table_once() -> None:
    found = [row.capability for row in LIMITS.values() if row.capability]
    assert sorted(found) == sorted(known for known in Capability if known.startswith("limit_"))


def test_every_row_has_its_numbers_in_order() -> None:
    assert list(LIMITS) == [field.name for field in fields(Limits)]
    for name, row in LIMITS.items():
        assert (row.name, row.default) == (name, getattr(Limits(), name))
        assert 0 < row.floor <= row.default <= (row.ceiling or math.inf)
        assert row.meaning


def test_the_command_line_knows_the_same_limits() -> None:
    assert tuple(LIMITS) == bodies.LIMITS
    assert LIMITS["wall_seconds"].default == bodies.WALL_SECONDS


def test_a_mebibyte_is_written_once() -> None:
    files = [path for path in APP.rglob("*.py") if re.search(r"^_?MIB\b.*=", path.read_text(), re.MULTILINE)]
    assert [str(path.relative_to(APP)) for path in files] == ["core/limits.py"]
