"""What `app/core/files.py` promises of directories and archives, through the whole service, for every runtime with
FILES."""

from __future__ import annotations

import asyncio
import base64
import io
import tarfile
from collections.abc import AsyncIterator

import pytest

from tests.contract.files_service import DISK_MIB, MIB, file_room, members_of, slug, tar_of
from tests.contract.kinds import Kind
from tests.null_backend import pattern


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def special(kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.mode = kind, mode
    return info


# --- directories


async def test_directory_is_made_with_parents_and_can_be_made_again(kind: Kind) -> None:
    async with file_room(kind) as room:
        for path, status in (("d/e/f", 201), ("d/e/f", 204), ("d", 204), ("d/e/g/", 201), ("/workspace", 204)):
            assert (await room.call("PUT", path, "directory")).status_code == status, path
        assert await room.names("d/e") == ["f", "g"]
        assert await room.names("d/e/f") == []


async def test_file_in_the_place_of_a_directory_is_wrong_type(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"1")
        for method in ("PUT", "GET"):
            answer = await room.call(method, "a", "directory")
            assert (answer.status_code, slug(answer), answer.json()["found"]) == (409, "wrong_type", "file")
        assert await room.content("a") == b"1"


async def test_list_shows_what_is_there(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.put("b", b"12345", mode="0600")
        await room.call("PUT", "d", "directory")
        await room.link("nowhere", "c")
        await room.fifo("e")
        body = (await room.call("GET", "/workspace", "directory")).json()
        assert body["next_cursor"] is None
        shown = [(item["name"], item["type"], item["target"]) for item in body["items"]]
        assert shown == [
            ("b", "file", None),
            ("c", "symlink", "nowhere"),
            ("d", "directory", None),
            ("e", "fifo", None),
        ]
        assert (body["items"][0]["size"], body["items"][0]["mode"]) == (5, "0600")
        assert body["items"][0]["modified_at"].endswith("Z")


async def test_list_comes_in_pages_in_the_order_of_bytes(kind: Kind) -> None:
    async with file_room(kind) as room:
        names = ["B", "a", "é", "z" * 255, *(f"n{n}" for n in range(8))]
        for name in names:
            await room.have(f"d/{name}")
        found: list[str] = []
        cursor = ""
        for _ in range(10):
            more = f"&cursor={cursor}" if cursor else ""
            answer = (await room.client.get(room.url("d", "directory", limit=5) + more)).json()
            assert len(answer["items"]) <= 5
            found += [item["name"] for item in answer["items"]]
            if answer["next_cursor"] is None:
                break
            cursor = answer["next_cursor"]
            await room.call("DELETE", f"d/{found[-1]}")  # what goes meanwhile shifts nothing
        assert found == sorted(names, key=str.encode)


async def test_wrong_page_is_refused_by_name(kind: Kind) -> None:
    async with file_room(kind) as room:
        for query in ("limit=0", "limit=1001", "limit=x", "cursor=!", "cursor=YQ%3D%3D", "cursor=YS9i"):
            answer = await room.client.get(f"/sandboxes/{room.id}/directory?path=.&{query}")
            assert answer.status_code == 422, query
            assert answer.json()["errors"][0]["pointer"] == f"query/{query.partition('=')[0]}"


async def test_target_that_is_not_utf8_has_its_bytes(kind: Kind) -> None:
    async with file_room(kind) as room:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            info = link("caf\udce9")
            info.name = "link"
            tar.addfile(info)
        assert (await room.unpack(".", data.getvalue())).status_code == 204
        (item,) = (await room.call("GET", ".", "directory")).json()["items"]
        assert item["target"] == "caf\ufffd"
        assert base64.b64decode(item["target_base64"]) == b"caf\xe9"


# --- archives


async def test_tree_comes_out_as_it_went_in(kind: Kind) -> None:
    async with file_room(kind) as room:
        old = special()
        old.mtime = 1_000_000_000
        sent = tar_of(
            ("d", None),
            ("d/a", pattern(100_000)),
            ("d/empty", b""),
            ("d/deep/er/b", b"1"),
            ("d/link", link("a")),
            ("d/twin", link("d/a", tarfile.LNKTYPE)),
            ("old", old),
            ("x" * 200, b"long"),
        )
        assert (await room.unpack("tree", sent)).status_code == 204
        assert await room.run(kind.programs.show("/workspace/tree/d/deep/er/b")) == b"1"
        answer = await room.call("GET", "tree", "archive")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-tar"
        found = members_of(answer.content)
        assert {name.removeprefix("./").rstrip("/") for name in found} == {
            *(".", "d", "d/a", "d/empty", "d/deep", "d/deep/er", "d/deep/er/b", "d/link", "d/twin", "old", "x" * 200)
        }
        assert found["d/link"].linkname == "a"
        assert found["old"].mtime == 1_000_000_000
        assert {found["d/a"].type, found["d/twin"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            file = tar.extractfile("d/twin")
            assert file is not None
            assert file.read() == pattern(100_000)
        assert (await room.unpack("again", answer.content)).status_code == 204
        assert await room.content("again/d/twin") == pattern(100_000)


async def test_single_file_is_an_archive_with_its_own_name(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("d/a", b"1")
        assert list(members_of((await room.call("GET", "d/a", "archive")).content)) == ["a"]


async def test_pipes_and_devices_are_left_out(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("d/a")
        await room.fifo("d/pipe")
        found = members_of((await room.call("GET", "d", "archive")).content)
        assert {name.removeprefix("./").rstrip("/") for name in found} == {".", "a"}
        answer = await room.call("GET", "d/pipe", "archive")
        assert (answer.status_code, answer.json()["found"]) == (409, "fifo")


async def test_unpacking_joins_directories_and_replaces_files(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("d/kept", b"kept")
        await room.have("d/a", b"old")
        assert (await room.unpack("d", tar_of(("a", b"new"), ("b", b"1")))).status_code == 204
        assert await room.names("d") == ["a", "b", "kept"]
        assert [await room.content(f"d/{name}") for name in ("a", "kept")] == [b"new", b"kept"]


async def test_names_of_one_file_come_out_as_such_and_part_when_one_is_written_or_deleted(kind: Kind) -> None:
    async with file_room(kind) as room:
        twins = tar_of(("a", b"old"), *((name, link("a", tarfile.LNKTYPE)) for name in ("b", "c")))
        assert (await room.unpack("d", twins)).status_code == 204
        packed = (await room.call("GET", "d", "archive")).content
        kinds = [member.type for member in members_of(packed).values() if member.isfile() or member.islnk()]
        assert sorted(kinds) == [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.LNKTYPE]
        assert (await room.put("d/a", b"new")).status_code == 204
        assert [await room.content(f"d/{name}") for name in "abc"] == [b"new", b"old", b"old"]
        assert (await room.call("DELETE", "d/b")).status_code == 204
        assert await room.names("d") == ["a", "c"]
        assert [await room.content(f"d/{name}") for name in "ac"] == [b"new", b"old"]
        assert (await room.unpack("again", packed)).status_code == 204
        assert [await room.content(f"again/{name}") for name in "abc"] == [b"old"] * 3


async def test_body_without_a_length_is_unpacked(kind: Kind) -> None:
    async with file_room(kind) as room:
        data = tar_of(*((f"d{n}/a", pattern(n * 1000)) for n in range(20)))

        async def pieces() -> AsyncIterator[bytes]:
            for begin in range(0, len(data), 777):
                yield data[begin : begin + 777]

        assert (await room.unpack(".", pieces())).status_code == 204
        assert await room.content("d19/a") == pattern(19_000)


REFUSED: tuple[tuple[str, bytes | tarfile.TarInfo], ...] = (
    ("../out", b"1"),
    ("a/../../out", b"1"),
    ("/workspace/out", b"1"),
    ("out", link("/etc/passwd")),
    ("out", link("../../out")),
    ("out", link("/etc/passwd", tarfile.LNKTYPE)),
    ("out", link("never/there", tarfile.LNKTYPE)),
    ("out", special(tarfile.CHRTYPE)),
    ("out", special(tarfile.BLKTYPE)),
    ("out", special(tarfile.FIFOTYPE)),
    ("out", special(mode=0o4755)),
    ("out", special(mode=0o2755)),
    ("first/below", b"1"),
)


async def test_refused_entry_is_named_and_nothing_of_the_archive_is_left(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("kept", b"1")
        for name, member in REFUSED if kind.name != "machine" else REFUSED[:1]:  # an emulated processor is slow
            for path in (".", "new/tree"):
                answer = await room.unpack(path, tar_of(("first", b"1"), ("d", None), (name, member)))
                assert (answer.status_code, slug(answer)) == (422, "invalid_archive"), (name, member)
                assert answer.json()["entry"].lstrip("/") == name.lstrip("/")
            assert await room.names() == ["kept"], (name, member)


async def test_archive_that_is_cut_short_is_refused_and_nothing_is_left(kind: Kind) -> None:
    async with file_room(kind) as room:
        data = tar_of(("a", pattern(3000)), ("b", b"1"))
        data = data[: len(data.rstrip(b"\0")) // 512 * 512 + 1536]  # without the standard library's padding
        for cut in (100, 700, 1024, 2000, -1024, -600):
            answer = await room.unpack("new", data[:cut])
            assert (answer.status_code, slug(answer)) == (422, "invalid_archive"), cut
            assert await room.names() == [], cut


async def test_something_else_than_tar_is_refused(kind: Kind) -> None:
    async with file_room(kind) as room:
        for body in (b"", b"PK\x03\x04", b"\x1f\x8b\x08\0" + bytes(2000), b"x" * 100_000):
            answer = await room.unpack("new", body)
            assert (answer.status_code, slug(answer)) == (422, "invalid_archive"), body[:4]
            assert await room.names() == [], body[:4]


async def test_file_does_not_take_the_place_of_a_directory_nor_the_reverse(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("d/b", b"1")
        for members in ((("d", b"file"),), (("d/b/c", b"1"),)):
            answer = await room.unpack(".", tar_of(("a", b"1"), *members))
            assert (answer.status_code, slug(answer)) == (409, "wrong_type")
        assert (await room.unpack("d/b", tar_of(("c", b"1")))).json()["found"] == "file"
        assert await room.names() == ["d"]
        assert await room.content("d/b") == b"1"


async def test_archive_that_does_not_fit_is_507_and_nothing_is_left(kind: Kind) -> None:
    if kind.name not in {"null", "process"}:
        pytest.skip("its smallest disk is a GiB")
    async with file_room(kind) as room:
        await room.have("kept")
        data = tar_of(("a", bytes(MIB)), ("b", bytes((DISK_MIB + 1) * MIB)))
        for path in (".", "new"):
            answer = await room.unpack(path, data)
            assert (answer.status_code, slug(answer)) == (507, "disk_full")
            assert answer.json()["limit"] == DISK_MIB * MIB
        assert await room.names() == ["kept"]


async def test_archive_whose_client_disconnects_leaves_nothing(kind: Kind) -> None:
    async with file_room(kind) as room:
        data = tar_of(("a", bytes(100_000)), ("b", bytes(100_000)))
        async with room.line() as (_, writer):
            writer.write(room.begin_of("PUT", "new", "archive", f"Content-Length: {len(data)}") + data[:150_000])
            await room.taken(150_000)
        async with asyncio.timeout(60):
            while await room.names():  # noqa: ASYNC110 - the service tells nobody that a client is gone
                await asyncio.sleep(0.02)
