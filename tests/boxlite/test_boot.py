"""From a spec to a box that runs: what is sent, how often, and what is left when it fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.core.errors import (
    BackendFailure,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    IsolationUnavailable,
    LaunchFailed,
)
from app.core.limits import Limits
from tests.boxlite.double import Answer, Attach, Drop, Route, Settings, Stall
from tests.boxlite.double.http import Failure
from tests.boxlite.rig import IMAGE, INSTANCE, SPEC, quick, rig, start, until, with_network

LIST = [Route.CREATE, Route.START, Route.EXEC, Route.ATTACH]


async def test_what_is_sent_for_a_sandbox_and_nothing_else() -> None:
    async with rig() as r:
        spec = replace(SPEC, limits=Limits(cpus=1.5, memory_mib=100, disk_mib=1025))
        sandbox = await r.sandbox("sbx_1", spec)
        (create,) = r.double.sent(Route.CREATE)
        command = create.json.pop("cmd")
        assert create.json == {
            "name": f"bh-{INSTANCE}-sbx_1",
            "rootfs_path": "/images/busybox",
            "cpus": 2,
            "memory_mib": 100,
            "disk_size_gb": 2,
            "network": {"mode": "disabled"},
            "detach": True,
            "auto_stop": 0,
            "auto_delete": 0,
        }
        assert command[:2] == ["sh", "-c"] and "trap" in command[2] and "wait" in command[2]
        assert r.routes() == LIST
        (box,) = r.double.boxes
        assert {request.path.split("/")[3] for request in r.double.requests if request.route in LIST[1:]} == {box.id}
        assert sandbox.box_id == box.id


async def test_a_network_is_sent_with_its_list_and_only_with_it() -> None:
    async with rig(direct_allow="*.example.org,10.0.0.0/8") as r:
        # The double's boxes have no network, whatever was asked for.
        sandbox = await r.sandbox("sbx_1", with_network("a.example.org", "10.1.0.0/16"))
        (create,) = r.double.sent(Route.CREATE)
        assert create.json["network"] == {"mode": "enabled", "allow_net": ["a.example.org", "10.1.0.0/16"]}
        assert sandbox.receipt["network"]["mode"] == "direct"


async def test_the_receipt_tells_the_boot_and_what_was_measured() -> None:
    async with rig(Settings(boot_seconds=0.3)) as r:
        sandbox = await r.sandbox()
        receipt = sandbox.receipt
        assert receipt["boot_seconds"] >= 0.3 and receipt["box_id"] == sandbox.box_id
        assert receipt["measured"]["cpus"] == 1 and receipt["network"]["routes_to_outside"] == 0
        assert receipt["reported"]["memory_mib"] == 64 and receipt["reported"]["image"] == "rootfs:/images/busybox"
        assert receipt["root"] == IMAGE


async def test_a_boot_that_was_too_slow_is_tried_once_more() -> None:
    async with rig() as r:
        r.double.faults.fail_boot(1)
        await r.sandbox()
        assert r.routes() == [Route.CREATE, Route.START, *LIST[1:]]


async def test_after_two_slow_boots_the_box_is_removed_and_the_servers_code_is_told() -> None:
    async with rig() as r:
        r.double.faults.fail_boot(2)
        with pytest.raises(BackendUnavailable, match="timed out") as caught:
            await r.sandbox()
        assert (caught.value.upstream.status, caught.value.upstream.code) == (503, "engine_unavailable")
        assert r.routes() == [Route.CREATE, Route.START, Route.START, Route.STOP, Route.DELETE]
        assert not r.double.boxes
        await r.backend.ready()


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (Failure("storage_error", "storage error: Failed to pull image 'x' after trying 1 registry"), 500),
        (Failure("image_pull_failed", "image error: DiffID mismatch"), 422),
        (Failure("invalid_argument", "invalid argument: executable 'sh' not found in $PATH"), 400),
        (Failure("unsupported", "unsupported: no usable KVM"), 400),
        (Failure("config_error", "configuration error: bwrap"), 500),
    ],
    ids=lambda value: value.code if isinstance(value, Failure) else "",
)
async def test_an_error_of_the_boot_is_told_as_it_is_and_not_tried_again(failure: Failure, status: int) -> None:
    async with rig() as r:
        r.double.faults.fail_boot(1, failure)
        with pytest.raises(BackendRefused) as caught:
            await r.sandbox()
        assert (caught.value.upstream.status, caught.value.upstream.code) == (status, failure.code)
        assert r.double.sent(Route.START) and len(r.double.sent(Route.START)) == 1
        assert not r.double.boxes


async def test_an_image_that_the_server_does_not_have() -> None:
    async with rig(Settings(missing_images={"/images/busybox"})) as r:
        with pytest.raises(BackendRefused, match="does not exist"):
            await r.sandbox()
        assert not r.double.boxes


async def test_a_create_whose_answer_is_lost_leaves_one_box_and_gives_it() -> None:
    async with rig() as r:
        r.double.faults.on(Route.CREATE, Drop(done=True), times=1)
        sandbox = await r.sandbox()
        (box,) = r.double.boxes
        assert box.id == sandbox.box_id
        assert await (await start(sandbox, "true")).end()


async def test_after_a_lost_create_a_box_of_an_earlier_life_is_not_taken_for_the_new_one() -> None:
    """The server said that the name is taken, and nobody heard it: what has the name has another image and maybe data
    of another client."""
    async with rig(opened=False) as r:
        old = await r.double.seed(f"bh-{INSTANCE}-sbx_1", image="other", start=True, cmd=["sleep", "1000"])
        r.double.faults.on(Route.CREATE, Drop(), times=1)
        r.double.faults.on(Route.LIST, Answer.json({"boxes": []}))
        r.backend.open()
        sandbox = await r.sandbox()
        assert sandbox.box_id != old.id
        (box,) = r.double.boxes
        assert box.options.rootfs_path == "/images/busybox"


async def test_a_name_that_an_earlier_life_left_is_taken_over_after_its_box_was_removed() -> None:
    async with rig(opened=False) as r:
        old = await r.double.seed(f"bh-{INSTANCE}-sbx_1", start=True, cmd=["sleep", "1000"])
        r.double.faults.on(Route.LIST, Answer.json({"boxes": []}))  # so that the pulse does not find it first
        r.backend.open()
        sandbox = await r.sandbox()
        assert sandbox.box_id != old.id and [box.id for box in r.double.boxes] == [sandbox.box_id]
        assert r.routes() == [Route.CREATE, Route.GET, Route.STOP, Route.DELETE, *LIST]


@pytest.mark.parametrize("route", [Route.CREATE, Route.START, Route.EXEC, Route.ATTACH])
@pytest.mark.parametrize("done", [False, True])
async def test_an_answer_of_the_boot_that_is_lost_leaves_nothing(route: Route, done: bool) -> None:
    """`rig` looks for boxes, tasks and descriptors."""
    async with rig() as r:
        fault = Attach(cut_after=1) if done and route is Route.ATTACH else Drop(done)
        r.double.faults.on(route, fault)
        with pytest.raises(BackendFailure):
            await r.sandbox()
        await until(lambda: not r.double.boxes)


@pytest.mark.parametrize("route", [Route.CREATE, Route.START, Route.EXEC, Route.ATTACH])
async def test_an_answer_of_the_boot_that_never_comes_leaves_nothing(route: Route) -> None:
    async with rig(timeouts=quick(control=0.5, opening=0.5, shell=0.5), boot_seconds=0.5) as r:
        r.double.faults.on(route, Stall())
        with pytest.raises((BackendTimeout, BackendUnavailable)):
            await r.sandbox()
        await until(lambda: not r.double.boxes)


async def test_a_guest_that_drops_its_first_call_is_asked_once_more() -> None:
    async with rig() as r:
        r.double.faults.on(Route.EXEC, Answer.failure("upstream_unavailable", "gRPC/tonic error: transport error"), 1)
        await r.sandbox()
        assert len(r.double.sent(Route.EXEC)) == 2


@pytest.mark.parametrize("moment", list(range(8)))
async def test_a_create_that_is_cancelled_at_any_moment_leaves_nothing(moment: int) -> None:
    """And never hangs up in the middle of a boot: the box that was being made is made, and then removed."""
    async with rig(Settings(boot_seconds=0.05)) as r:
        creating = asyncio.get_running_loop().create_task(r.sandbox())
        await until(lambda: len(r.routes()) >= moment // 2 or creating.done())
        for _ in range(moment % 2 * 5):
            await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await until(lambda: not r.double.boxes)
        assert r.backend._names == set()
        assert not any(box.status == "failed" for box in r.double.boxes)


async def test_a_cancelled_create_waits_for_the_boot_and_the_server_never_sees_a_client_leave() -> None:
    async with rig() as r:
        boot = Stall(until=asyncio.Event())
        r.double.faults.on(Route.START, boot, times=1)
        creating = asyncio.get_running_loop().create_task(r.sandbox())
        await boot.reached.wait()
        creating.cancel()
        await r.beats(2)
        assert not creating.done() and Route.STOP not in r.routes()
        assert boot.until is not None
        boot.until.set()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert r.routes() == [*LIST, Route.STOP, Route.DELETE]


async def test_a_cancelled_create_whose_box_cannot_be_removed_is_removed_later() -> None:
    async with rig() as r:
        boot = Stall(until=asyncio.Event())
        r.double.faults.on(Route.START, boot, times=1)
        r.double.faults.on(Route.DELETE, Answer.failure("internal"), times=2)
        creating = asyncio.get_running_loop().create_task(r.sandbox())
        await boot.reached.wait()
        creating.cancel()
        assert boot.until is not None
        boot.until.set()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await until(lambda: not r.double.boxes)


async def test_no_more_boots_at_one_time_than_the_operator_says() -> None:
    async with rig(boots=2) as r:
        boot = Stall(until=asyncio.Event())
        r.double.faults.on(Route.START, boot)
        creating = [asyncio.get_running_loop().create_task(r.sandbox(f"sbx_{n}")) for n in range(4)]
        await until(lambda: len(r.double.sent(Route.START)) == 2)
        await r.beats(2)
        assert len(r.double.sent(Route.START)) == 2 and len(r.double.boxes) == 2
        assert boot.until is not None
        boot.until.set()
        await asyncio.gather(*creating)
        assert len(r.double.boxes) == 4


EXIT = '{"type":"exit","exit_code":%d}'


async def test_an_image_whose_user_cannot_make_the_workspace() -> None:
    async with rig() as r:
        denied = b"\x02mkdir: can't create directory '/workspace': Permission denied"
        r.double.faults.on(Route.ATTACH, Attach(first=(denied, EXIT % 4)), times=1)
        with pytest.raises(LaunchFailed, match=r"Permission denied.*workdir that the image has") as caught:
            await r.sandbox()
        assert (caught.value.step, caught.value.errno_name) == ("workspace", "EACCES")
        assert not r.double.boxes


async def test_the_workspace_is_made_whatever_the_working_directory_is() -> None:
    async with rig() as r:
        sandbox = await r.sandbox(spec=replace(SPEC, workdir="/tmp"))
        run = await start(sandbox, "sh", "-c", "pwd; echo kept >file; cat file", workdir="/workspace")
        assert ((await run.end()).code, run.out) == (0, b"/workspace\nkept\n")
        assert (await sandbox.files.stat(b"/workspace/file")).size == 5


async def test_an_image_whose_user_cannot_make_the_workspace_works_with_another_directory() -> None:
    async with rig(Settings(user="1000:1000")) as r:
        sandbox = await r.sandbox(spec=replace(SPEC, workdir="/tmp"))
        run = await start(sandbox, "sh", "-c", "id -u; [ -e /workspace ] || echo none", workdir="/tmp")
        assert ((await run.end()).code, run.out) == (0, b"1000\nnone\n")


@pytest.mark.parametrize(
    ("facts", "layer"),
    [
        ("cpus=2 memory_kib=80000 routes=0", "limit_cpus"),
        ("cpus=1 memory_kib=800000 routes=0", "limit_memory"),
        ("cpus=1 memory_kib=80000 routes=1", "network"),
        ("cpus=1 memory_kib=80000", "network"),
        ("", "network"),
    ],
)
async def test_a_box_that_has_more_than_it_was_given_is_removed_again(facts: str, layer: str) -> None:
    async with rig() as r:
        said = b"\x01" + "\n".join(facts.split()).encode() + b"\n"
        r.double.faults.on(Route.ATTACH, Attach(first=(said, EXIT % 0)), times=1)
        with pytest.raises(IsolationUnavailable) as caught:
            await r.sandbox()
        assert caught.value.layer == layer
        assert not r.double.boxes


async def test_a_box_without_a_shell_is_no_fault_of_the_server() -> None:
    """One image must not close the runtime to everybody else."""
    async with rig() as r:
        no_shell = "internal error: spawn_failed: executable 'sh' not found in $PATH"
        r.double.faults.on(Route.EXEC, Answer.failure("internal", no_shell), times=2)
        with pytest.raises(BackendUnavailable, match="no working shell"):
            await r.sandbox()
        await r.backend.ready()
        await r.sandbox("sbx_2")
