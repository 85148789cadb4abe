"""Routes about the server, the network and the numbers."""

from __future__ import annotations

from typing import Any

from tests.boxlite.double.create import direction
from tests.boxlite.double.engine import Engine
from tests.boxlite.double.faults import Route
from tests.boxlite.double.http import Failure, Request, Response, answer, json_body
from tests.boxlite.double.routes import does, unsupported

NO_SSH = {"enabled": False, "generation": 0, "listen_address": "", "host_public_key": "", "host_key_fingerprint": ""}


@does(Route.METRICS)
async def metrics(engine: Engine, request: Request, args: list[str]) -> Response:
    """`num_running_boxes` is a difference of counters and not what runs."""
    counted = engine.counters
    failed = sum(box.failed_boots for box in engine.boxes)
    return answer(
        {
            "boxes_created_total": counted["created"],
            "boxes_failed_total": failed,
            "boxes_stopped_total": counted["stopped"],
            "num_running_boxes": max(0, counted["created"] - counted["stopped"] - failed),
            "total_commands_executed": counted["commands"],
            "total_exec_errors": counted["errors"],
        }
    )


@does(Route.BOX_METRICS)
async def box_metrics(engine: Engine, request: Request, args: list[str]) -> Response:
    """Boots a sleeping box, which is why nobody should ask for them."""
    box = engine.box(args[0])
    if not box.running and box.options.auto_stop:
        raise Failure("conflict", f"box {box.id} is not running; metrics do not wake a box with AutoStop")
    await box.wake("metrics")
    zeros = ("bytes_sent_total", "bytes_received_total", "commands_executed_total", "exec_errors_total")
    unknown = ("bytes_sent", "bytes_received", "tcp_connections", "tcp_errors")
    stages = ("total_create", "filesystem_setup", "image_prepare", "guest_rootfs", "box_spawn", "container_init")
    timing: dict[str, Any] = {f"{stage}_ms": 1 for stage in stages}
    return answer(
        {
            **dict.fromkeys(zeros, 0),
            "cpu_percent": 0.0,
            "memory_bytes": 1_789_952,
            **{f"network_{name}": None for name in unknown},
            "boot_timing": timing | {"guest_boot_ms": None, "box_config_ms": None},
        }
    )


@does(Route.OUTBOUND)
async def set_outbound(engine: Engine, request: Request, args: list[str]) -> Response:
    """Of a running box that was made with a network; remembered, and without effect in the double."""
    wanted = direction(json_body(request), "outbound")
    box = engine.box(args[0])
    box.touch()
    if box.options.network["outbound"]["mode"] == "disabled":
        raise Failure("unsupported", "unsupported: box networking is disabled")
    if not box.running:
        raise Failure("invalid_state", f"invalid state: box {box.id} is {box.status}")
    return answer(wanted)


@does(Route.SNAPSHOTS)
async def list_snapshots(engine: Engine, request: Request, args: list[str]) -> Response:
    """There never are any: nothing of ours makes one."""
    engine.box(args[0])
    return answer({"snapshots": []})


@does(Route.SSH)
async def ssh(engine: Engine, request: Request, args: list[str]) -> Response:
    engine.box(args[0])
    return answer(NO_SSH)


INBOUND = does(Route.INBOUND)(unsupported("this backend does not support inbound policy updates"))
