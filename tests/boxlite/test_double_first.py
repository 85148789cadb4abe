"""The plain case, from create to delete, as a client without any library sees it."""

from __future__ import annotations

from tests.boxlite.client import Client, box_double

LOOP = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]


async def test_a_box_from_create_to_delete() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.ok("POST", "/v1/boxes", {"image": "debian", "cmd": LOOP}, status=201)
        path = f"/v1/boxes/{box['box_id']}"
        assert box["status"] == "configured"
        assert (await client.ask("POST", f"{path}/exec", {"command": "true"})).json()["error"][
            "code"
        ] == "invalid_state"
        assert (await client.ok("POST", f"{path}/start"))["status"] == "running"
        said = await client.run(box["box_id"], "sh", "-c", "echo out; echo err >&2; cat; exit 3", stdin=b"typed")
        assert (said.stdout, said.stderr, said.exit_code) == (b"out\ntyped", b"err\n", 3)
        stopped = await client.ok("POST", f"{path}/stop")
        assert (stopped["status"], stopped["exit_code"]) == ("stopped", 0)
        assert (await client.ask("DELETE", path)).status_code == 204
        assert (await client.ask("GET", path)).status_code == 404
