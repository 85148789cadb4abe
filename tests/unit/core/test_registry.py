from __future__ import annotations

import pytest

from app.core.errors import RuntimeNotEnabled, UnknownRuntime
from app.core.registry import Registry
from tests.null_backend import NullBackend

PROCESS = NullBackend("process", aliases=("linux", "kernel"))
BOXLITE = NullBackend("boxlite", aliases=("vm",))


@pytest.mark.parametrize("name", ["process", "linux", "kernel"])
def test_every_alias_leads_to_the_same_backend(name: str) -> None:
    registry = Registry([PROCESS, BOXLITE], default="linux")
    assert registry.get(name) is PROCESS
    assert registry.canonical(name) == registry.default == "process"
    assert list(registry) == [PROCESS, BOXLITE]


def test_disabled_runtime_is_refused_by_name_under_every_alias_and_never_replaced() -> None:
    registry = Registry([PROCESS, BOXLITE], default="process", disabled=["boxlite"])
    for name in ("boxlite", "vm"):
        with pytest.raises(RuntimeNotEnabled) as refusal:
            registry.get(name)
        assert refusal.value.runtime == "boxlite"
    assert (registry.enabled("process"), registry.enabled("boxlite")) == (True, False)


def test_auto_can_be_the_default_and_is_no_runtime() -> None:
    registry = Registry([PROCESS, BOXLITE], default="auto")
    assert registry.default == "auto"
    with pytest.raises(UnknownRuntime):
        registry.get("auto")


def test_unknown_runtime_names_the_known_ones() -> None:
    with pytest.raises(UnknownRuntime) as refusal:
        Registry([PROCESS, BOXLITE], default="process").get("wasm")
    assert refusal.value.known == ["auto", "boxlite", "kernel", "linux", "process", "vm"]
