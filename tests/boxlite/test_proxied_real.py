"""The mode `proxy` with a real box: it works, and of all that is there the box reaches the proxy alone."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

from app.backends.boxlite.backend import BoxliteBackend
from app.backends.boxlite.egress import BoxEgress
from app.serving.box_network import listen_for_boxes
from app.settings.boxlite import BoxliteSettings
from app.settings.egress import PROXY_PORT, proxy_host
from tests.boxlite.machine import IMAGE, Machine
from tests.boxlite.rig import INSTANCE, start
from tests.boxlite.test_proxied import spec, world
from tests.kernel.test_box_network import HOST, LINK, NETWORK
from tests.require import require
from tests.unit.egress.support import NAME

PROXY = str(proxy_host(NETWORK))
# Prints what answers. `nc` ends when the other side does, or could not be reached.
TRY = 'for place; do nc -w 2 "${place%:*}" "${place#*:}" </dev/null >/dev/null 2>&1 && echo "$place"; done; echo end'
TUNNEL = """
credential=${http_proxy#http://} proxy=${http_proxy#*@}
basic=$(printf %s "${credential%@*}" | base64 -w 0)
printf 'CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\nProxy-Authorization: Basic %s\\r\\n\\r\\n' "$1" "$1" "$basic" >ask
printf 'GET /tunnel HTTP/1.1\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n' "$1" >>ask
mkfifo hold && exec 3<>hold  # so that the input has no end: BoxLite's network passes no half-closed connections on
cat ask >hold
nc "${proxy%:*}" "${proxy#*:}" <hold
"""


async def test_real_box_reaches_the_hosts_of_its_rules_and_nothing_else(machine: Machine, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "namespaces need root")
    settings = BoxliteSettings.model_validate(
        {
            "url": machine.url,
            "api_key": machine.key,
            "images": {"busybox": {"rootfs_path": IMAGE}},
            "default_image": "busybox",
        }
    )
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # a service of this host on all of its addresses
        port = everywhere.getsockname()[1]
        async with world(tmp_path, await asyncio.to_thread(listen_for_boxes, NETWORK, LINK)) as made:
            socket.create_connection((HOST, port), 20).close()  # the attack works from outside of a box
            egress = BoxEgress(made.link, f"{PROXY}:{PROXY_PORT}")
            backend = BoxliteBackend(settings, INSTANCE, egress=egress, no_proxy="")
            backend.open()
            try:
                asked = spec(f"{NAME}:{made.port}")
                asked = replace(asked, limits=replace(asked.limits, memory_mib=128))
                box = await backend.create("sbx_1", backend.fit(asked))

                run = await start(box, "wget", "-q", "-O", "-", f"http://{NAME}:{made.port}/plain")
                assert ((await run.end(250)).code, run.out) == (0, b"ok"), run.err
                run = await start(box, "sh", "-c", TUNNEL, "sh", f"{NAME}:{made.port}", workdir="/tmp")
                await run.end(250)
                assert run.out.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK\r\n"), run.out
                assert [request.target for request in made.host.requests] == [b"/plain", b"/tunnel"]
                run = await start(box, "wget", "-q", "-O", "-", f"http://other.example.org:{made.port}/")
                await run.end(250)
                assert b"403" in run.err
                assert [event.verdict for _, event in made.reported].count("refused") > 0

                near = [PROXY_PORT - 1, PROXY_PORT + 1, port, made.port, *range(1, 65_536, 2048)]
                elsewhere = [f"{address}:{each}" for each in (port, 8100, 80) for address in (
                    HOST, "10.0.2.2", "10.0.2.15", "192.168.127.254", "127.0.0.1", "169.254.169.254", "203.0.113.7",
                )]  # fmt: skip
                places = [f"{PROXY}:{PROXY_PORT}", *(f"{PROXY}:{each}" for each in near), *elsewhere]
                run = await start(box, "sh", "-c", TRY, "sh", *places)
                await run.end(250)
                assert run.out.decode().split() == [f"{PROXY}:{PROXY_PORT}", "end"]
            finally:
                await backend.aclose()
