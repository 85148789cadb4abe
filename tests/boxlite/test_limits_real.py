"""Limits of each process of an execution, in a real box."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from app.backends.boxlite.backend import BoxliteBackend
from app.core.models import ExecutionLimits
from app.settings.boxlite import BoxliteSettings
from tests.boxlite.machine import IMAGE, Machine
from tests.boxlite.rig import INSTANCE, SPEC, start

SHOW = "id -u; ulimit -Hs; ulimit -Hn; ulimit -Hf"
RAISE = "for limit in 's 8192' 'n 4096' 'f 99999'; do (ulimit -H${limit% *} ${limit#* }) && echo raised; done"
GROUP = "mkdir /sys/fs/cgroup/mine && echo made"
LARGE = "head -c 4000000 /dev/zero >/tmp/large; wc -c </tmp/large"


async def test_root_of_a_box_has_the_limits_of_its_execution_and_cannot_raise_them(machine: Machine) -> None:
    """Nor can it make a control group, so nothing there limits what all processes of an execution use together."""
    settings = {
        "url": machine.url,
        "api_key": machine.key,
        "images": {"busybox": {"rootfs_path": IMAGE}},
        "default_image": "busybox",
    }
    backend = BoxliteBackend(BoxliteSettings.model_validate(settings), INSTANCE)
    backend.open()
    try:
        await backend.ready()
        spec = replace(SPEC, limits=replace(SPEC.limits, memory_mib=128))
        async with asyncio.timeout(250):
            sandbox = await backend.create("sbx_1", backend.fit(spec))
        limits = ExecutionLimits(stack_mib=2, open_files=20, file_mib=3)
        text = f"{SHOW}; {{ {RAISE}; {GROUP}; }} 2>&1; {LARGE}"
        run = await start(sandbox, "sh", "-c", text, limits=limits)
        async with asyncio.timeout(250):
            end = await run.handle.wait()
        assert (end.code, run.out.split()[:4]) == (0, [b"0", b"2048", b"20", b"6144"])
        assert b"raised" not in run.out and b"made" not in run.out, run.out
        assert run.out.split()[-1] == b"3145728"
    finally:
        await backend.aclose()
