from __future__ import annotations

import pytest

from tests.require import require


def outcome(feature: str, available: bool) -> str:
    try:
        require(feature, available, "the kernel is too old")
    except pytest.skip.Exception as skip:
        return f"skipped: {skip.msg}"
    except pytest.fail.Exception as failure:
        return f"failed: {failure.msg}"
    return "ran"


@pytest.mark.parametrize("demanded", ["", "landlock", "all"])
def test_what_is_available_runs(monkeypatch: pytest.MonkeyPatch, demanded: str) -> None:
    monkeypatch.setenv("BULKHEAD_TEST_REQUIRE", demanded)
    assert outcome("landlock", True) == "ran"


@pytest.mark.parametrize("demanded", ["", "seccomp", "landlocked, seccomp"])
def test_what_is_missing_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch, demanded: str) -> None:
    monkeypatch.setenv("BULKHEAD_TEST_REQUIRE", demanded)
    assert outcome("landlock", False) == "skipped: landlock: the kernel is too old"


@pytest.mark.parametrize("demanded", ["landlock", "seccomp, landlock", "all"])
def test_what_is_missing_but_demanded_fails(monkeypatch: pytest.MonkeyPatch, demanded: str) -> None:
    monkeypatch.setenv("BULKHEAD_TEST_REQUIRE", demanded)
    assert outcome("landlock", False).startswith("failed: BULKHEAD_TEST_REQUIRE demands landlock")
