"""Sandboxes over every runtime: the receipt, refusals by name, two at once, the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.runtimes.places import Place


def test_receipt_and_answer_say_what_is_enforced(place: Place, shared: str) -> None:
    shown = place.show(shared)
    receipt = shown["isolation"]
    assert receipt["tier"] == ("kernel" if place.runtime == "process" else "vm")
    assert receipt["network"]["mode"] == "none"
    assert receipt["network"]["routes_to_outside"] == 0
    assert (shown["limits"]["processes"] is None) != place.promises("limit_processes")
    assert (shown["policy"]["filesystem"] is None) != place.promises("filesystem_policy")
    assert shown["storage"] == receipt["storage"]["kind"] == ("memory" if place.runtime == "process" else "disk")
    if place.runtime == "boxlite":
        assert receipt["boot_seconds"] > 0
        assert receipt["measured"]["cpus"] == 1
        assert 128 * 2**20 * 0.8 < receipt["measured"]["memory_bytes"] < 192 * 2**20
        assert shown["limits"]["disk_mib"] == 1024  # 512 was the default: whole GiB
        assert shown["image"] == "busybox"


def test_what_a_runtime_lacks_is_refused_by_name_before_anything_is_made(place: Place) -> None:
    before = len(place.service.call("GET", "/sandboxes?limit=1000")[1]["items"])
    for capability in ("exact_output", "kill_tree", "images", "pty", "usage"):
        if not place.promises(capability):
            body = {"runtime": place.runtime, "requires": [capability]}
            status, answer = place.service.call("POST", "/sandboxes", body)
            assert (status, answer["missing"]) == (422, [capability])
    for storage in ("memory", "disk"):
        if not place.promises(f"storage_{storage}"):
            status, answer = place.service.call("POST", "/sandboxes", {"runtime": place.runtime, "storage": storage})
            assert (status, answer["missing"]) == (422, [f"storage_{storage}"])
    if not place.promises("limit_processes"):
        limited = {"runtime": place.runtime, "limits": {"processes": 5}}
        status, answer = place.service.call("POST", "/sandboxes", limited)
        assert (status, answer["pointer"]) == (422, "/limits/processes")
    assert len(place.service.call("GET", "/sandboxes?limit=1000")[1]["items"]) == before


def test_network_is_absent(place: Place, shared: str) -> None:
    script = "cat /proc/net/route | wc -l; ls /sys/class/net 2>/dev/null"
    running = place.start(shared, "sh", "-c", script)
    running.exit()
    lines = running.out().decode().split()
    assert lines[0] in {"0", "1"}  # the heading
    assert "eth0" not in lines


def test_two_sandboxes_at_once_are_apart_and_delete_ends_everything(place: Place) -> None:
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: place.create(), range(2))
    place.start(first, "sh", "-c", "echo mine > /workspace/file").exit()
    seen = place.start(second, "ls", "/workspace/file")
    assert seen.exit()["code"] not in {0, None}
    sleeping = place.start(first, "sleep", "1000")
    place.delete(first)
    place.delete(first)
    ended = sleeping.exit()
    assert (ended["reason"], ended["signal"]) == ("killed", "SIGKILL")
    assert place.show(first)["state"] == "destroyed"
    assert place.start(second, "true").exit()["code"] == 0
    place.delete(second)


def test_ttl_destroys(place: Place) -> None:
    sandbox = place.create(ttl_seconds=60)
    running = place.start(sandbox, "sleep", "1000")
    status, _ = place.service.call("PATCH", f"/sandboxes/{sandbox}", {"ttl_seconds": 0.5})
    assert status == 200
    ended = running.exit()
    assert (ended["reason"], ended["detail"].split(";")[0]) == ("killed", "the sandbox expired: its ttl passed")
