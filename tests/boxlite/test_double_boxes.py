"""Boxes: rooms of their own, with the states, the refusals and the races of the real ones."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.boxlite.client import Client, box_double, until
from tests.boxlite.double import Route, Settings
from tests.require import require

IDLE = ["sleep", "infinity"]


async def test_a_box_is_a_room_of_its_own() -> None:
    script = """
        [ -e /workspace ] || echo no workspace
        ls /tmp | wc -l
        touch /usr/x 2>/dev/null || echo usr is read-only
        cat /sys/class/net/*/uevent 2>/dev/null; cut -d: -f1 /proc/net/dev | tail -n +3
        set -- /proc/[0-9]*; echo $#
        grep CapEff /proc/self/status
        cat /proc/sys/kernel/hostname
        echo kept >/root/kept; echo lost >/dev/null
    """
    expected = "no workspace\n0\nusr is read-only\n    lo\n2\nCapEff:\t00000000a80425fb\nboxlite\n"
    async with box_double() as double, Client(double) as client:
        said = await client.run(await client.box(), "sh", "-c", script)
        assert (said.stdout.decode(), said.stderr) == (expected, b"")


async def test_what_is_in_a_box_is_there_after_a_stop_and_gone_after_its_end() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        await client.run(box, "sh", "-c", "mkdir /workspace; echo kept >/workspace/kept; echo lost >/tmp/lost")
        await client.ok("POST", f"/v1/boxes/{box}/stop")
        await client.ok("POST", f"/v1/boxes/{box}/start")
        assert (await client.run(box, "sh", "-c", "cat /workspace/kept; ls /tmp")).stdout == b"kept\n"
        assert (await client.ask("DELETE", f"/v1/boxes/{box}")).status_code == 204
        folder = double.folder
        assert not list(folder.iterdir())
    assert not folder.exists()


async def test_a_user_of_a_box() -> None:
    require("root", os.geteuid() == 0, "a user namespace of one's own has one user")
    async with box_double() as double, Client(double) as client:
        box = await client.box(user="1000:1000", working_dir="/tmp", env={"WHO": "wörld", "BOTH": "box"})
        script = "id -u; id -g; pwd; echo $WHO $BOTH; touch /root/x"
        said = await client.run(box, "sh", "-c", script, env={"BOTH": "exec"})
        assert said.stdout.decode() == "1000\n1000\n/tmp\nwörld exec\n"
        assert b"Permission denied" in said.stderr
        refused = await double.seed(cmd=IDLE, user="nobody-there")
        answer = await client.ask("POST", f"/v1/boxes/{refused.id}/start")
        assert (answer.status_code, "User 'nobody-there' not found" in answer.text) == (500, True)


@pytest.mark.parametrize(
    ("sizes", "status"),
    [({"cpus": 0}, 503), ({"memory_mib": 16}, 503), ({"disk_size_gb": 0}, 503), ({"disk_size_gb": 10**6}, 500)],
)
async def test_senseless_sizes_are_found_out_at_the_boot(sizes: dict[str, int], status: int) -> None:
    async with box_double() as double, Client(double) as client:
        made = await client.ok("POST", "/v1/boxes", {"cmd": IDLE, **sizes}, status=201)
        assert (await client.ask("POST", f"/v1/boxes/{made['box_id']}/start")).status_code == status


async def test_of_ten_creates_of_one_name_one_wins() -> None:
    async with box_double() as double, Client(double) as client:
        answers = await asyncio.gather(*(client.ask("POST", "/v1/boxes", {"name": "one-name"}) for _ in range(10)))
        assert sorted(answer.status_code for answer in answers) == [201] + [400] * 9


async def test_five_first_commands_of_a_cold_box_share_one_boot() -> None:
    async with box_double(Settings(boot_seconds=0.1)) as double, Client(double) as client:
        box = (await client.ok("POST", "/v1/boxes", {}, status=201))["box_id"]
        said = await asyncio.gather(*(client.run(box, "cat", "/proc/sys/kernel/random/boot_id") for _ in range(5)))
        assert [found.exit_code for found in said] == [0] * 5
        assert (await client.ok("POST", f"/v1/boxes/{box}/stop"))["exit_code"] == 0


async def test_what_comes_during_a_boot() -> None:
    async with box_double(Settings(boot_seconds=1)) as double, Client(double) as client:
        box = await double.seed(cmd=IDLE)
        path = f"/v1/boxes/{box.id}"
        starting = asyncio.create_task(client.ok("POST", f"{path}/start"))
        await double.arrived(Route.START)
        assert (await client.ok("POST", f"{path}/stop"))["status"] == "stopped"
        assert (await starting)["status"] == "running"
        await client.ok("POST", f"{path}/stop")
        refused = asyncio.create_task(client.ask("POST", f"{path}/start"))
        await double.arrived(Route.START, 2)
        assert (await client.ask("DELETE", path)).status_code == 204
        assert (await refused).json()["error"]["code"] == "engine_unavailable"


async def test_the_main_command_runs_after_start_has_answered() -> None:
    async with box_double(Settings(main_seconds=1.5)) as double, Client(double) as client:
        box = await client.box(cmd=["sh", "-c", "touch /root/began; exec sleep 60"])
        folder = double.folder / box / "root" / "began"
        assert not folder.exists()
        assert (await client.run(box, "true")).exit_code == 0  # an exec waits for it
        await until(folder.exists)


async def test_a_box_that_somebody_else_made_is_listed() -> None:
    async with box_double() as double, Client(double) as client:
        await double.seed("another-instance-1")
        await double.seed("another-instance-2", start=True, cmd=IDLE)
        boxes = (await client.ok("GET", "/v1/boxes"))["boxes"]
        assert [(box["name"], box["status"]) for box in boxes] == [
            ("another-instance-2", "running"),
            ("another-instance-1", "configured"),
        ]


async def test_auto_stop_and_auto_delete_count_from_the_last_activity() -> None:
    async with box_double(Settings(tick_seconds=0.05)) as double, Client(double) as client:
        box = await client.box(cmd=IDLE, auto_stop=1, auto_delete=2)
        path = await client.execute(box, "sleep", "1.5")
        assert (await client.follow(path)).exit_code == 0  # a running execution holds it off
        await client.becomes(f"/v1/boxes/{box}", "stopped")
        await client.becomes(f"/v1/boxes/{box}", 404)


async def test_network_and_metrics() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        rules = {"mode": "enabled", "allow_net": ["192.0.2.1"]}
        assert await client.ok("PUT", f"/v1/boxes/{box}/network/outbound", rules) == rules
        closed = await client.box(network={"mode": "disabled"})
        answer = await client.ask("PUT", f"/v1/boxes/{closed}/network/outbound", rules)
        assert answer.json()["error"]["code"] == "unsupported"
        assert (await client.ask("PUT", f"/v1/boxes/{box}/network/inbound", rules)).status_code == 400
        await client.run(box, "true")
        await client.ask("POST", f"/v1/boxes/{box}/exec", {"command": "missing"})
        metrics = await client.ok("GET", "/v1/metrics")
        assert (metrics["boxes_created_total"], metrics["total_commands_executed"], metrics["total_exec_errors"]) == (
            2,
            1,
            1,
        )
