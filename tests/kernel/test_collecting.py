"""What a hostile sandbox has for `collect`: 10^5 names, a gigabyte, a link that leads out of its folder."""

from __future__ import annotations

from typing import Any

from tests.service import PATIENCE, Service


def collect(service: Service, sandbox: str, *patterns: str) -> list[dict[str, Any]]:
    body = {"command": ["true"], "collect": list(patterns)}
    status, said = service.call("POST", f"/sandboxes/{sandbox}/run", body, timeout=PATIENCE)
    assert status == 200, said
    return list(said["collected"])


def test_bounds_hold_for_what_a_sandbox_really_has(service: Service) -> None:
    sandbox = service.create(limits={"disk_mib": 512, "memory_mib": 512})
    make = "import os\nos.mkdir('many')\nfor n in range(100_000): os.close(os.open(f'many/{n:06}', os.O_CREAT))\n"
    make += "os.truncate(os.open('big', os.O_CREAT | os.O_RDWR), 1 << 30)\nos.symlink('/etc/passwd', 'passwd')"
    assert service.run(sandbox, "python3", "-c", make)["exit"]["code"] == 0
    found = collect(service, sandbox, "big", "passwd", "many/*")
    assert found[0] == {
        "path": "big",
        "error": f"has {1 << 30} bytes; collected files have {8 << 20} bytes in all at most",
    }
    assert found[1]["path"] == "passwd", "a link is followed inside, where this file is the sandbox's own"
    assert "content_base64" in found[1]
    assert [file["path"] for file in found[2:-1]] == [f"many/{n:06}" for n in range(1022)]
    assert found[-1] == {"path": "many/*", "error": "matches more; one answer has 1024 files at most"}
    looked = collect(service, sandbox, "many/x*", "many/y*")
    assert [file["error"][:7] for file in looked] == ["nothing", "needs a"]
    service.call("DELETE", f"/sandboxes/{sandbox}")
