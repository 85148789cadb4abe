"""Streaming is complete: every byte, to every viewer, whatever the others do."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.kernel import host, raw
from tests.kernel.talk import Running, start
from tests.service import Service

MIB = 1 << 20
BINARY = (
    bytes(range(256)) * 4096 + b"\0" * 5000 + b"\x1b[31m\x1b]0;title\x07" * 2000 + "äöü€😀".encode() * 3000 + b"end"
)
PRINT_BINARY = (
    "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096 + b'\\0' * 5000 + "
    "b'\\x1b[31m\\x1b]0;title\\x07' * 2000 + '\\u00e4\\u00f6\\u00fc\\u20ac\\U0001f600'.encode() * 3000 + b'end')"
)


@pytest.fixture(scope="module")
def binary(service: Service) -> Iterator[Running]:
    """An ended execution that has printed BINARY."""
    sandbox = service.create()
    running = start(service, sandbox, "python3", "-c", PRINT_BINARY)
    assert running.exit()["code"] == 0
    yield running
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_binary_output_arrives_as_it_was_written(binary: Running) -> None:
    with binary.stream() as viewer:
        frame = viewer.until_exit()
    assert viewer.out["stdout"] == BINARY
    assert frame["stdout"] == {"bytes": len(BINARY), "dropped_bytes": 0, "sha256": hashlib.sha256(BINARY).hexdigest()}
    assert frame["stderr"] == {"bytes": 0, "dropped_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    assert (frame["exit_code"], frame["exit"]["reason"]) == (0, "exited")


def test_a_viewer_resumes_at_any_offset(binary: Running) -> None:
    chance = random.Random(1)
    for offset in (0, 1, 65_535, 65_536, len(BINARY) - 1, len(BINARY), *chance.sample(range(len(BINARY)), 20)):
        with binary.stream(f"?stdout_offset={offset}") as viewer:
            viewer.until_exit()
        assert viewer.start["stdout_offset"] == offset
        assert viewer.out["stdout"] == BINARY[offset:]
    with pytest.raises(InvalidStatus) as refused, binary.stream(f"?stdout_offset={len(BINARY) + 1}"):
        pass
    assert refused.value.response.status_code == 416


@pytest.mark.parametrize("writes", ["one-byte", "split-utf-8", "no-newline"])
def test_small_writes_arrive_exactly(service: Service, sandbox: str, writes: str) -> None:
    once = "grün €😀\r\n\t\x1b[0m\0".encode() + b"no newline"
    times, size = 2000 if writes == "one-byte" else 1, 7 if writes == "no-newline" else 1
    text = once * times
    script = f"import os\nd = {once!r} * {times}\nfor i in range(0, len(d), {size}): os.write(1 + i % 2, d[i:i+{size}])"
    running = start(service, sandbox, "python3", "-c", script)
    with running.stream() as viewer:
        viewer.until_exit()
    parts: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    for i in range(0, len(text), size):
        parts["stderr" if i % 2 else "stdout"] += text[i : i + size]
    assert viewer.out == parts
    viewer.check()


def test_many_viewers_see_the_same_while_it_is_printed(service: Service, sandbox: str) -> None:
    script = "read go; for i in $(seq 20000); do echo line $i; echo err $i >&2; done"
    running = start(service, sandbox, "sh", "-c", script, stdin="open")
    viewers = [running.stream("?stdin=true" if n == 0 else "") for n in range(20)]
    frozen = [raw.stalled_viewer(service, f"{running.path}/stream") for _ in range(5)]
    threads = [threading.Thread(target=viewer.until_exit) for viewer in viewers]
    for thread in threads:
        thread.start()
    viewers[0].send(b"go\n")
    for thread in threads:
        thread.join(60)
    for viewer in viewers:
        assert bytes(viewer.out["stdout"]) == b"".join(b"line %d\n" % i for i in range(1, 20_001))
        assert bytes(viewer.out["stderr"]) == b"".join(b"err %d\n" % i for i in range(1, 20_001))
        viewer.check()
        viewer.stack.close()
    for connection in frozen:
        connection.close()


def test_a_viewer_that_is_cut_again_and_again_misses_nothing(service: Service, sandbox: str) -> None:
    running = start(
        service, sandbox, "python3", "-c", "import sys\nfor i in range(300000): sys.stdout.write(f'{i}\\n')"
    )
    got = b""
    ending: dict[str, Any] = {}
    while not ending:
        with running.stream(f"?stdout_offset={len(got)}") as viewer:
            while len(viewer.out["stdout"]) < 300_000 and not viewer.exit:
                viewer.step()
        got, ending = got + bytes(viewer.out["stdout"]), viewer.exit
    assert got == b"".join(b"%d\n" % i for i in range(300_000))
    assert ending["stdout"]["sha256"] == hashlib.sha256(got).hexdigest()


def test_dropped_output_is_told_as_a_gap(service: Service) -> None:
    sandbox = service.create(limits={"output_bytes": 100_000})
    text = b"".join(b"%09d\n" % i for i in range(100_000))
    running = start(
        service, sandbox, "python3", "-c", "import sys\nfor i in range(100000): sys.stdout.write(f'{i:09}\\n')"
    )
    assert running.exit()["code"] == 0
    with running.stream() as viewer:
        frame = viewer.until_exit()
    assert viewer.gaps == [{"type": "gap", "channel": "stdout", "from": 0, "to": 900_000}]
    assert viewer.out["stdout"] == text[900_000:]
    assert frame["stdout"] == {"bytes": 10**6, "dropped_bytes": 900_000, "sha256": hashlib.sha256(text).hexdigest()}
    with running.stream("?stdout_offset=950000") as late:
        late.until_exit()
    assert (late.gaps, bytes(late.out["stdout"])) == ([], text[950_000:])
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_a_gigabyte_passes_while_the_gateways_memory_stays_flat(service: Service) -> None:
    size = 1_000_000_000
    sandbox = service.create(limits={"output_bytes": 256 * MIB})
    gateway = service.children()["gateway"]
    service.run(sandbox, "head", "-c", "20000000", "/dev/zero")  # whatever is allocated once
    before, most = host.resident_mib(gateway), 0.0
    running = start(service, sandbox, "head", "-c", str(size), "/dev/zero")
    with running.stream() as viewer:
        viewer.keep, frames = False, 0
        while not viewer.exit:
            assert viewer.step()
            frames += 1
            if frames % 256 == 0:
                most = max(most, host.resident_mib(gateway))
    assert viewer.exit["stdout"]["bytes"] == size
    missed = sum(gap["to"] - gap["from"] for gap in viewer.gaps)
    assert viewer.counts["stdout"] + missed == size
    if not missed:  # this client may be slower than the program; what it misses it is told
        viewer.check()
    assert most - before <= 32, f"{before:.0f} MiB before, {most:.0f} at most"
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_a_stalled_viewer_slows_neither_the_program_nor_another_viewer(service: Service) -> None:
    sandbox, size = service.create(limits={"output_bytes": 256 * MIB}), 200_000_000
    gateway = service.children()["gateway"]

    def run(stalled: int) -> tuple[float, float]:
        """(seconds that the program took, MiB that the gateway grew by)."""
        before = host.resident_mib(gateway)
        running = start(service, sandbox, "sh", "-c", f"read go; head -c {size} /dev/zero", stdin="open")
        frozen = [raw.stalled_viewer(service, f"{running.path}/stream") for _ in range(stalled)]
        with running.stream("?stdin=true") as viewer:
            viewer.keep = False
            began = time.monotonic()
            viewer.send(b"go\n")
            viewer.until_exit()
            took = time.monotonic() - began
        viewer.check()
        grown = host.resident_mib(gateway) - before
        for connection in frozen:
            connection.close()
        return took, grown

    alone, _ = run(0)
    crowded, grown = run(10)
    assert crowded < 3 * alone + 2, (alone, crowded)
    assert grown <= 32
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_both_channels_in_one_pipe_come_in_the_order_of_writing(service: Service) -> None:
    script = "import os\nfor n in range(20_000): os.write(1 + n % 2, b'%d\\n' % n)"
    sandbox = service.create()
    body = {"command": ["python3", "-c", script], "stderr": "stdout"}
    status, said = service.call("POST", f"/sandboxes/{sandbox}/run", body)
    assert (status, said["exit"]["code"], said["stderr"]) == (200, 0, "")
    assert said["stdout"] == "".join(f"{n}\n" for n in range(20_000))
    status, apart = service.call("POST", f"/sandboxes/{sandbox}/run", {"command": ["python3", "-c", script]})
    assert apart["stdout"] == "".join(f"{n}\n" for n in range(0, 20_000, 2))
    service.call("DELETE", f"/sandboxes/{sandbox}")
