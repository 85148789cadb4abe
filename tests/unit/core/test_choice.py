"""Which runtime: never another than the one asked for, never a weaker wall than the floor."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from app.core.backend import Backend
from app.core.capabilities import Capability
from app.core.choice import RuntimeRequest, choose
from app.core.errors import (
    BackendUnavailable,
    BulkheadError,
    CapabilityMissing,
    InvalidRequest,
    IsolationUnavailable,
    RuntimeNotEnabled,
    UnknownRuntime,
)
from app.core.models import Tier
from app.core.registry import Registry
from tests.null_backend import NullBackend

STDIN, PTY, IMAGES, KILL_TREE, PAUSE = (
    Capability.STDIN,
    Capability.PTY,
    Capability.IMAGES,
    Capability.KILL_TREE,
    Capability.PAUSE,
)
PROCESS = NullBackend("process", capabilities=frozenset({STDIN, KILL_TREE}))
BOXLITE = NullBackend("boxlite", tier="vm", aliases=("vm", "microvm"), capabilities=frozenset({STDIN, PTY, IMAGES}))
NO_LAUNCHER = BackendUnavailable("process", "no launcher")
NO_SERVER = BackendUnavailable("boxlite", "no server")


class Core:
    """Both runtimes; `down` says which do not work now, `asked` which were asked."""

    def __init__(self, down: Mapping[str, BulkheadError] | None = None, *disabled: str) -> None:
        self.registry = Registry([PROCESS, BOXLITE], default="process", disabled=disabled)
        self.down = dict(down or {})
        self.asked: list[str] = []

    async def failure_of(self, backend: Backend) -> BulkheadError | None:
        self.asked.append(backend.info.name)
        return self.down.get(backend.info.name)

    async def choose(
        self, runtime: str = "auto", floor: Tier | None = None, *needs: Capability, settled_on: str | None = None
    ) -> tuple[str, str | None]:
        request = RuntimeRequest(runtime, floor, frozenset(needs))
        backend, reason = await choose(request, self.registry, self.failure_of, settled_on)
        return backend.info.name, reason


# --- the one that was asked for


@pytest.mark.parametrize(("runtime", "name"), [("process", "process"), ("vm", "boxlite")])
async def test_the_one_asked_for_is_taken_without_a_reason_and_whether_it_works_or_not(runtime: str, name: str) -> None:
    core = Core({"process": NO_LAUNCHER, "boxlite": NO_SERVER})
    assert await core.choose(runtime, None, PAUSE) == (name, None)
    assert core.asked == []


async def test_the_one_asked_for_may_be_a_stronger_wall_than_the_floor() -> None:
    assert await Core().choose("boxlite", Tier.KERNEL) == ("boxlite", None)
    assert await Core().choose("boxlite", Tier.VM) == ("boxlite", None)


async def test_a_weaker_wall_than_the_floor_contradicts_the_runtime() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await Core().choose("process", Tier.VM)
    (error,) = refusal.value.errors
    assert error.pointer == "/isolation_min"
    assert (
        error.detail == "the runtime 'process' isolates by kernel, which is weaker than vm; "
        "the runtime 'auto' chooses one that is strong enough"
    )


async def test_unknown_and_disabled_runtimes_are_refused() -> None:
    with pytest.raises(UnknownRuntime):
        await Core().choose("wasm")
    with pytest.raises(RuntimeNotEnabled):
        await Core(None, "boxlite").choose("vm")


# --- auto


async def test_auto_takes_the_cheapest_and_does_not_ask_the_others() -> None:
    core = Core()
    assert await core.choose() == ("process", "auto: process is the cheapest runtime that is available")
    assert core.asked == ["process"]


async def test_auto_takes_the_next_when_the_cheapest_is_down_and_says_why() -> None:
    reason = "auto: boxlite is the cheapest runtime that is available; process is not available (no launcher)"
    assert await Core({"process": NO_LAUNCHER}).choose() == ("boxlite", reason)


async def test_auto_goes_by_the_floor() -> None:
    core = Core()
    name, reason = await core.choose("auto", Tier.VM)
    assert name == "boxlite"
    assert reason == (
        "auto: boxlite is the cheapest runtime that is available, isolates by vm at least; "
        "process isolates by kernel only"
    )
    assert core.asked == ["boxlite"], "a weaker wall is no candidate"
    assert (await core.choose("auto", Tier.KERNEL))[0] == "process"


async def test_auto_goes_by_what_the_request_needs() -> None:
    name, reason = await Core().choose("auto", None, PTY, IMAGES)
    assert name == "boxlite"
    assert reason == (
        "auto: boxlite is the cheapest runtime that is available, has images, pty; process lacks images, pty"
    )
    assert (await Core().choose("auto", None, STDIN, KILL_TREE))[0] == "process"


async def test_auto_passes_a_disabled_runtime_and_says_so() -> None:
    name, reason = await Core(None, "process").choose()
    assert name == "boxlite"
    assert reason is not None
    assert reason.endswith("; process is not enabled")


async def test_auto_names_what_is_missing_where_the_least_is_missing() -> None:
    core = Core()
    with pytest.raises(CapabilityMissing) as refusal:
        await core.choose("auto", None, PTY, IMAGES, KILL_TREE)
    assert (refusal.value.missing, refusal.value.runtime) == (["kill_tree"], "auto")
    assert str(refusal.value) == "no runtime meets the request: process lacks images, pty; boxlite lacks kill_tree"
    assert core.asked == []


async def test_auto_without_any_runtime_that_meets_the_floor_is_not_enabled() -> None:
    with pytest.raises(RuntimeNotEnabled) as refusal:
        await Core(None, "boxlite").choose("auto", Tier.VM)
    assert (refusal.value.runtime, refusal.value.known) == ("auto", ["process"])
    assert str(refusal.value) == (
        "no runtime meets the request: process isolates by kernel only; boxlite is not enabled"
    )


async def test_auto_never_goes_below_the_floor_when_the_strong_wall_is_down() -> None:
    core = Core({"boxlite": NO_SERVER})
    with pytest.raises(BackendUnavailable) as refusal:
        await core.choose("auto", Tier.VM)
    assert refusal.value.runtime == "boxlite"
    assert core.asked == ["boxlite"]


async def test_auto_with_all_down_names_them_all() -> None:
    down = {"process": IsolationUnavailable("landlock", "no Landlock"), "boxlite": NO_SERVER}
    with pytest.raises(BackendUnavailable) as refusal:
        await Core(down).choose()
    assert str(refusal.value) == (
        "no runtime that meets the request is available: process is not available (no Landlock); "
        "boxlite is not available (no server)"
    )


# --- auto, again


@pytest.mark.parametrize(
    "down", [{}, {"process": NO_LAUNCHER}, {"boxlite": NO_SERVER}, {"process": NO_LAUNCHER, "boxlite": NO_SERVER}]
)
@pytest.mark.parametrize("name", ["process", "boxlite"])
async def test_a_repeated_auto_comes_to_the_same_runtime_whatever_is_down_now(
    name: str, down: dict[str, BulkheadError]
) -> None:
    assert (await Core(down).choose(settled_on=name))[0] == name


async def test_what_auto_settled_on_does_not_count_when_it_does_not_meet_the_request() -> None:
    assert (await Core().choose("auto", Tier.VM, settled_on="process"))[0] == "boxlite"
    assert (await Core().choose("auto", None, KILL_TREE, settled_on="boxlite"))[0] == "process"


async def test_what_auto_settled_on_does_not_change_an_explicit_runtime() -> None:
    assert await Core().choose("boxlite", settled_on="process") == ("boxlite", None)
