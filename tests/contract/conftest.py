"""What the suites share that run against every runtime."""

from __future__ import annotations

import pytest

from tests.contract.kinds import KINDS, MACHINE, Kind

# Refused by the service before a runtime hears of much. A real box takes ten seconds for each: one of many will do.
REFUSED_BEFORE = frozenset(
    {
        "test_wrong_query_is_refused_by_name",
        "test_refused_entry_is_named_and_nothing_of_the_archive_is_left",
        "test_archive_that_is_cut_short_is_refused_and_nothing_is_left",
        "test_something_else_than_tar_is_refused",
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
    seen: set[str] = set()
    repeated: list[pytest.Item] = []
    for item in items:
        name = item.name.partition("[")[0]
        if name in REFUSED_BEFORE and "[machine" in item.name:
            if name in seen:
                repeated.append(item)
            seen.add(name)
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if item not in repeated]
