"""What `app/core/files.py` promises of single files, through the whole service, for every runtime with FILES."""

from __future__ import annotations

import asyncio
import base64
import json
import tarfile
from collections.abc import AsyncIterator

import pytest

from tests.contract.files_service import DISK_MIB, MIB, FileRoom, file_room, slug, tar_of
from tests.contract.kinds import Kind
from tests.null_backend import pattern


async def pieces(data: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    """Sent chunked, without a length."""
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


# --- reading what was written


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * MIB + 17])
async def test_file_is_read_as_it_was_written_and_a_command_sees_it(kind: Kind, size: int) -> None:
    async with file_room(kind) as room:
        data = pattern(size)
        assert (await room.put("a.bin", data)).status_code == 201
        answer = await room.get("/workspace/a.bin")
        assert answer.status_code == 200
        assert answer.content == data
        if size < MIB:  # what an execution prints is kept in memory up to 256 KiB here
            assert await room.run(kind.programs.show("/workspace/a.bin")) == data
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-length"] == str(size)
        assert answer.headers["accept-ranges"] == "bytes"
        assert (answer.headers["file-mode"], answer.headers["file-type"]) == ("0644", "file")
        head = await room.head("a.bin")
        for name in ("content-length", "etag", "last-modified", "file-mode", "file-type", "accept-ranges"):
            assert head.headers[name] == answer.headers[name]
        assert head.content == b""


async def test_body_without_a_length_is_taken_and_replaces_the_old_file(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"old and longer than the new one")
        assert (await room.put("a", pieces(pattern(200_000)))).status_code == 204
        assert await room.content("a") == pattern(200_000)
        assert (await room.put("a", b"")).status_code == 204
        assert await room.content("a") == b""


async def test_mode_is_set_and_shown(kind: Kind) -> None:
    async with file_room(kind) as room:
        for mode in ("0755", "600", "0644"):
            await room.put("a", b"x", mode=mode)
            assert (await room.head("a")).headers["file-mode"] == mode.rjust(4, "0")


async def test_mode_of_a_file_that_is_replaced_stays(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.put("a", b"x")
        assert (await room.head("a")).headers["file-mode"] == "0644"
        await room.put("a", b"x", mode="0750")
        await room.put("a", b"y")
        assert (await room.head("a")).headers["file-mode"] == "0750"
        assert await room.content("a") == b"y"


async def test_own_folder_in_the_root_is_not_listed(kind: Kind) -> None:
    async with file_room(kind) as room:
        names = await room.names("/")
        assert "tmp" in names
        assert not [name for name in names if name.startswith(".bulkhead")]


async def test_form_is_refused_and_nothing_is_stored(kind: Kind) -> None:
    async with file_room(kind) as room:
        answer = await room.put("a", b"--x--", content_type="multipart/form-data; boundary=x")
        assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported_media_type")
        assert (await room.head("a")).status_code == 404


# --- paths


async def test_parents_are_made(kind: Kind) -> None:
    async with file_room(kind) as room:
        deep = "/".join(f"d{n}" for n in range(40))
        assert (await room.put(f"{deep}/a", b"deep")).status_code == 201
        assert await room.content(f"/workspace/{deep}/a") == b"deep"


async def test_dots_and_slashes_in_a_path_mean_what_they_mean_to_a_command(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("d/a", b"1")
        for path in ("d/../d/a", "./d//a", "/workspace/./d/a", "/../../workspace/d/a", "../tmp/../workspace/d/a"):
            assert await room.content(path) == b"1", path
        assert (await room.head("d/")).headers["file-type"] == "directory"
        assert (await room.head("d/..")).headers["file-type"] == "directory"
        assert slug(await room.get("d/a/..")) == "wrong_type"
        assert slug(await room.get("nothing/../d/a")) == "not_found"


async def test_name_that_is_not_utf8_is_kept(kind: Kind) -> None:
    async with file_room(kind) as room:
        name = b"\xff\xfe caf\xe9+%&=?#"
        assert (await room.put(b"d/" + name, b"raw")).status_code == 201
        assert await room.content(b"d/" + name) == b"raw"
        (item,) = (await room.call("GET", "d", "directory")).json()["items"]
        assert item["name"] == name.decode(errors="replace")
        assert base64.b64decode(item["name_base64"]) == name
        await room.have("d/ü", b"utf")
        items = (await room.call("GET", "d", "directory")).json()["items"]
        assert [("name_base64" in item) for item in items if item["name"] == "ü"] == [False]
        assert (await room.call("DELETE", b"d/" + name)).status_code == 204
        assert await room.names("d") == ["ü"]


async def test_space_may_be_written_as_a_plus(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a b", b"1")
        assert (await room.client.get(f"/sandboxes/{room.id}/files?path=a+b")).content == b"1"


WRONG_QUERIES = (
    ("", "query/path"),
    ("path=", "query/path"),
    ("path=a&path=b", "query/path"),
    ("path=a&p%61th=b", "query/path"),
    ("path=a%00b", "query/path"),
    ("path=%zz", "query/path"),
    ("path=100%", "query/path"),
    ("path=" + "a/" * 2048, "query/path"),
    ("path=a&depth=1", "query/depth"),
)


async def test_wrong_query_is_refused_by_name(kind: Kind) -> None:
    async with file_room(kind) as room:
        for query, pointer in WRONG_QUERIES:
            for method, what in (("GET", "files"), ("PUT", "files"), ("DELETE", "files"), ("GET", "directory")):
                answer = await room.client.request(method, f"/sandboxes/{room.id}/{what}?{query}")
                assert answer.status_code == 422, (method, what, query)
                assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
            assert (await room.client.head(f"/sandboxes/{room.id}/files?{query}")).status_code == 422, query


async def test_path_that_the_kernel_does_not_take_is_422(kind: Kind) -> None:
    async with file_room(kind) as room:
        for method in ("GET", "PUT", "DELETE"):
            answer = await room.call(method, "a" * 256, content=b"x" if method == "PUT" else None)
            assert (answer.status_code, slug(answer)) == (422, "invalid_request"), method
            assert answer.json()["errors"][0]["pointer"] == "query/path"
        assert await room.names() == []


async def test_nothing_at_a_path_is_404(kind: Kind) -> None:
    async with file_room(kind) as room:
        for path in ("nothing", "/nothing/at/all", "d/nothing"):
            assert slug(await room.get(path)) == "not_found"
            assert (await room.head(path)).status_code == 404
            assert slug(await room.call("DELETE", path)) == "not_found"
            assert slug(await room.call("GET", path, "directory")) == "not_found"
            assert slug(await room.call("GET", path, "archive")) == "not_found"


# --- what is no file


@pytest.mark.parametrize(("path", "found"), [("d", "directory"), ("pipe", "fifo"), ("/dev/null", "character_device")])
async def test_something_else_than_a_file_is_wrong_type_at_once(kind: Kind, path: str, found: str) -> None:
    async with file_room(kind) as room:
        await room.have("d/a")
        await room.fifo("pipe")
        for method in ("GET", "PUT"):
            answer = await room.call(method, path, content=b"x" if method == "PUT" else None)
            assert (answer.status_code, slug(answer), answer.json()["found"]) == (409, "wrong_type", found)
        head = await room.head(path)
        assert (head.status_code, head.headers["file-type"]) == (200, found)
        assert "content-length" not in head.headers
        assert "accept-ranges" not in head.headers


async def test_path_through_a_file_is_wrong_type(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"1")
        for method, what in (("GET", "files"), ("PUT", "files"), ("PUT", "directory"), ("GET", "directory")):
            answer = await room.call(method, "a/b", what, content=b"x" if (method, what) == ("PUT", "files") else None)
            assert (answer.status_code, slug(answer)) == (409, "wrong_type"), (method, what)
            assert answer.json()["found"] == "file"
        assert await room.content("a") == b"1"


async def test_slash_at_the_end_names_a_directory(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"1")
        assert (await room.get("a/")).json()["found"] == "file"
        for path in ("a/", "new/"):
            assert slug(await room.put(path, b"2")) == "wrong_type"
        assert await room.content("a") == b"1"
        assert await room.names() == ["a"]


# --- links


async def test_links_are_followed_and_stay_links(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("real/a", b"1")
        await room.link("real/a", "link")
        await room.link("/workspace/real", "way")
        assert await room.content("link") == b"1"
        assert await room.content("way/a") == b"1"
        assert (await room.head("link")).headers["file-type"] == "file"
        assert (await room.put("link", b"2")).status_code == 204
        assert await room.content("real/a") == b"2"
        items = (await room.call("GET", ".", "directory")).json()["items"]
        assert [(item["name"], item["type"], item["target"]) for item in items] == [
            ("link", "symlink", "real/a"),
            ("real", "directory", None),
            ("way", "symlink", "/workspace/real"),
        ]


async def test_delete_of_a_link_leaves_what_it_leads_to(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("real/a", b"1")
        await room.link("real", "way")
        assert (await room.call("DELETE", "way", recursive="true")).status_code == 204
        assert await room.names() == ["real"]
        assert await room.content("real/a") == b"1"


async def test_link_to_nothing_is_404_and_is_written_through(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.link("target", "link")
        assert slug(await room.get("link")) == "not_found"
        assert (await room.put("link", b"1")).status_code == 201
        assert await room.content("target") == b"1"


async def test_links_in_a_circle_are_422(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.link("two", "one")
        await room.link("one", "two")
        for method, what in (*READS_AND_WRITES, ("GET", "archive")):
            for path in ("one", "one/a"):
                await refused_for_links(room, method, path, what)


async def test_long_chain_of_links_is_422_and_one_that_a_command_can_follow_is_followed(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("end", b"old")
        entries = [("link0", link_to("end"))]
        entries += [(f"link{number}", link_to(f"link{number - 1}")) for number in range(1, 60)]
        assert (await room.unpack(".", tar_of(*entries))).status_code == 204
        assert (await room.put("link30", b"new")).status_code == 204
        assert await room.content("end") == b"new"
        for method, what in READS_AND_WRITES:
            for path in ("link59", "link41"):
                await refused_for_links(room, method, path, what)


READS_AND_WRITES = (
    ("GET", "files"),
    ("PUT", "files"),
    ("GET", "directory"),
    ("PUT", "directory"),
    ("PUT", "archive"),
)


async def refused_for_links(room: FileRoom, method: str, path: str, what: str) -> None:
    content = {"files": b"x", "archive": tar_of(("a", b"x"))}.get(what) if method == "PUT" else None
    answer = await room.call(method, path, what, content=content)
    assert (answer.status_code, slug(answer)) == (422, "invalid_request"), (method, what, path)
    assert answer.json()["errors"][0]["pointer"] == "query/path"


def link_to(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


# --- conditions


async def test_etag_is_another_after_each_replacement(kind: Kind) -> None:
    async with file_room(kind) as room:
        tags = set()
        for _ in range(3):
            await room.have("a", b"the same")
            tags.add((await room.head("a")).headers["etag"])
        assert len(tags) == 3
        assert all(tag.startswith('"') and tag.endswith('"') for tag in tags)
        assert (await room.head("a")).headers["etag"] == (await room.get("a")).headers["etag"]


async def test_conditional_reads(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"1")
        found = await room.get("a")
        tag, modified = found.headers["etag"], found.headers["last-modified"]
        long_ago = "Thu, 01 Jan 1970 00:00:00 GMT"
        for read in (room.get, room.head):
            for known in (tag, f'"x", W/{tag}', "*"):
                answer = await read("a", if_none_match=known)
                assert (answer.status_code, answer.content) == (304, b"")
                assert answer.headers["etag"] == tag
                assert "content-length" not in answer.headers
            assert (await read("a", if_none_match='"x"')).status_code == 200
            assert (await read("a", if_modified_since=modified)).status_code == 304
            assert (await read("a", if_modified_since=long_ago)).status_code == 200
            assert (await read("a", if_modified_since="yesterday")).status_code == 200
            assert (await read("a", if_match=tag)).status_code == 200
            assert (await read("a", if_match="*")).status_code == 200
            assert (await read("a", if_match='"x"')).status_code == 412
            assert (await read("a", if_match=f"W/{tag}")).status_code == 412
            assert (await read("a", if_unmodified_since=long_ago)).status_code == 412
            assert (await read("a", if_unmodified_since=modified)).status_code == 200
        assert slug(await room.get("a", if_match='"x"')) == "precondition_failed"


async def test_conditional_writes_hold_or_change_nothing(kind: Kind) -> None:
    async with file_room(kind) as room:
        for headers in ({"if_match": "*"}, {"if_match": '"x"'}):
            answer = await room.put("a", b"0", **headers)
            assert (answer.status_code, slug(answer)) == (412, "precondition_failed")
        assert await room.names() == []
        assert (await room.put("a", b"1", if_none_match="*")).status_code == 201
        assert (await room.put("a", b"2", if_none_match="*")).status_code == 412
        tag = (await room.head("a")).headers["etag"]
        assert (await room.put("a", b"2", if_none_match=tag)).status_code == 412
        assert (await room.put("a", b"2", if_match='"x"')).status_code == 412
        assert await room.content("a") == b"1"
        assert (await room.put("a", b"3", if_match=f'"x", {tag}')).status_code == 204
        assert (await room.put("a", b"4", if_match=tag)).status_code == 412
        assert await room.content("a") == b"3"


async def test_writes_at_the_same_time_leave_one_of_them_whole(kind: Kind) -> None:
    async with file_room(kind) as room:
        contents = [bytes([65 + n]) * 300_000 for n in range(kind.beside)]
        answers = await asyncio.gather(*(room.put("a", pieces(content)) for content in contents))
        assert {answer.status_code for answer in answers} <= {201, 204}
        assert await room.content("a") in contents
        assert await room.names() == ["a"]


async def test_of_writes_that_want_to_be_the_first_exactly_one_is(kind: Kind) -> None:
    async with file_room(kind) as room:
        contents = [bytes([65 + n]) * 100_000 for n in range(kind.beside)]
        answers = await asyncio.gather(*(room.put("a", pieces(c), if_none_match="*") for c in contents))
        assert sorted(answer.status_code for answer in answers) == [201, *[412] * (kind.beside - 1)]
        (first,) = [c for c, answer in zip(contents, answers, strict=True) if answer.status_code == 201]
        assert await room.content("a") == first


async def test_of_writes_that_replace_the_same_state_exactly_one_does(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"0")
        tag = (await room.head("a")).headers["etag"]
        contents = [bytes([65 + n]) * 100_000 for n in range(kind.beside)]
        answers = await asyncio.gather(*(room.put("a", pieces(c), if_match=tag) for c in contents))
        assert sorted(answer.status_code for answer in answers) == [204, *[412] * (kind.beside - 1)]
        (first,) = [c for c, answer in zip(contents, answers, strict=True) if answer.status_code == 204]
        assert await room.content("a") == first


# --- ranges


RANGES = (
    ("bytes=0-0", 206, 0, 1),
    ("bytes=10-19", 206, 10, 20),
    ("Bytes = 10-19", 206, 10, 20),
    ("bytes=990-", 206, 990, 1000),
    ("bytes=990-99999", 206, 990, 1000),
    ("bytes=-10", 206, 990, 1000),
    ("bytes=-99999", 206, 0, 1000),
    ("bytes=0-999", 206, 0, 1000),
    ("bytes=0-9,20-29", 200, 0, 1000),
    ("bytes=9-0", 200, 0, 1000),
    ("bytes=-", 200, 0, 1000),
    ("bytes=a-b", 200, 0, 1000),
    ("lines=0-9", 200, 0, 1000),
    ("bytes=1000-", 416, 0, 0),
    ("bytes=1000-1001", 416, 0, 0),
    ("bytes=-0", 416, 0, 0),
)


async def test_range(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", pattern(1000))
        for asked, status, begin, end in RANGES:
            answer = await room.get("a", range=asked)
            assert answer.status_code == status, asked
            if status == 416:
                assert slug(answer) == "range_not_satisfiable"
                assert answer.headers["content-range"] == "bytes */1000"
            else:
                assert answer.content == pattern(1000)[begin:end], asked
                assert answer.headers["content-length"] == str(end - begin)
            if status == 206:
                assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/1000"
            if status == 200:
                assert "content-range" not in answer.headers, asked


async def test_range_of_an_empty_file(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"")
        assert (await room.get("a", range="bytes=0-")).headers["content-range"] == "bytes */0"
        assert (await room.get("a", range="bytes=-5")).status_code == 200


async def test_range_only_if_it_is_still_the_same_file(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", pattern(1000))
        found = (await room.head("a")).headers
        for same in (found["etag"], found["last-modified"]):
            assert (await room.get("a", range="bytes=0-9", if_range=same)).status_code == 206
        for other in ('"x"', f"W/{found['etag']}", "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense"):
            answer = await room.get("a", range="bytes=0-9", if_range=other)
            assert (answer.status_code, answer.content) == (200, pattern(1000))


# --- deleting


async def test_delete_of_files_and_trees(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a")
        await room.have("d/e/f/b")
        await room.call("PUT", "empty", "directory")
        assert (await room.call("DELETE", "a")).status_code == 204
        assert slug(await room.call("DELETE", "a")) == "not_found"
        assert (await room.call("DELETE", "empty")).status_code == 204
        answer = await room.call("DELETE", "d")
        assert (answer.status_code, slug(answer)) == (409, "conflict")
        assert await room.names() == ["d"]
        assert (await room.call("DELETE", "d", recursive="true")).status_code == 204
        assert await room.names() == []


async def test_delete_of_a_pipe_does_not_open_it(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.fifo("pipe")
        assert (await room.call("DELETE", "pipe")).status_code == 204
        assert await room.names() == []


async def test_path_that_ends_in_dots_names_nothing_to_delete(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("d/e/a")
        for path in (".", "..", "./", "d/.", "d/e/..", "d/e/../", "/workspace/.."):
            answer = await room.call("DELETE", path, recursive="true")
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "query/path"), path
        assert await room.names() == ["d"]
        assert await room.names("d/e") == ["a"]


async def test_workspace_itself_stays(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a")
        answer = await room.call("DELETE", "/workspace", recursive="true")
        assert answer.status_code in {403, 409}
        assert (await room.put("b", b"1")).status_code == 201


# --- what fails leaves the old file


async def test_full_disk_is_507_and_leaves_the_old_file(kind: Kind) -> None:
    if kind.name not in {"null", "process"}:
        pytest.skip("its smallest disk is a GiB")
    async with file_room(kind) as room:
        await room.have("a", b"old")
        for path in ("a", "new/b"):
            answer = await room.put(path, pieces(bytes((DISK_MIB + 1) * MIB), MIB))
            assert (answer.status_code, slug(answer)) == (507, "disk_full")
            assert answer.json()["limit"] == DISK_MIB * MIB
        assert await room.content("a") == b"old"
        assert await room.names() == ["a"]
        assert (await room.put("b", bytes(MIB))).status_code == 201


async def test_client_that_disconnects_in_the_middle_leaves_the_old_file(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"old")
        for path in ("a", "new/b"):
            async with room.line() as (_, writer):
                writer.write(room.begin_of("PUT", path, "files", "Content-Length: 1000000") + bytes(400_000))
                await room.taken(400_000)
        async with asyncio.timeout(60):
            while await room.names() != ["a"]:  # noqa: ASYNC110 - the service tells nobody that a client is gone
                await asyncio.sleep(0.02)
        assert await room.content("a") == b"old"


async def test_what_a_command_may_not_write_is_403(kind: Kind) -> None:
    if kind.name not in {"null", "process"}:
        pytest.skip("its commands are root in their own machine")
    async with file_room(kind) as room:
        for answer in (
            await room.put("/usr/new", b"x"),
            await room.call("PUT", "/usr/new", "directory"),
            await room.call("DELETE", "/usr", recursive="true"),
        ):
            assert (answer.status_code, slug(answer)) == (403, "access_denied"), answer.request.method


async def test_client_is_asked_to_go_on_before_it_sends(kind: Kind) -> None:
    async with file_room(kind) as room:
        async with room.line() as (reader, writer):
            writer.write(room.begin_of("PUT", "a", "files", "Content-Length: 5", "Expect: 100-continue"))
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            await reader.readline()
            writer.write(b"hello")
            assert await reader.readline() == b"HTTP/1.1 201 Created\r\n"
        assert await room.content("a") == b"hello"


async def test_client_whose_write_is_refused_is_not_asked_to_send(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", b"old")
        async with room.line() as (reader, writer):
            expect = ("Content-Length: 99999999", "Expect: 100-continue", "If-None-Match: *")
            writer.write(room.begin_of("PUT", "a", "files", *expect))
            answer = (await reader.read()).split(b"\r\n\r\n")
            assert answer[0].startswith(b"HTTP/1.1 412 ")
            assert b"connection: close" in answer[0]
            assert json.loads(answer[1])["type"] == "/problems/precondition_failed"


# --- a sandbox that is not there


async def test_sandbox_that_is_not_there_or_no_longer(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a")
        assert slug(await room.client.get("/sandboxes/nobody/files?path=a")) == "not_found"
        assert (await room.client.delete(f"/sandboxes/{room.id}")).status_code == 204
        for method, what in (("GET", "files"), ("PUT", "files"), ("GET", "directory"), ("GET", "archive")):
            answer = await room.call(method, "a", what, content=b"x" if method == "PUT" else None)
            assert (answer.status_code, slug(answer), answer.json()["state"]) == (409, "wrong_state", "destroyed")


async def test_write_ends_at_once_when_its_sandbox_is_destroyed(kind: Kind) -> None:
    async with file_room(kind) as room, room.line() as (reader, writer):
        writer.write(room.begin_of("PUT", "a", "files", "Content-Length: 1000") + bytes(400))
        await room.taken(400)
        assert (await room.client.delete(f"/sandboxes/{room.id}")).status_code == 204
        assert await reader.readline() == b"HTTP/1.1 409 Conflict\r\n", "422 would be after the time for a body"


async def test_read_is_cut_when_its_sandbox_is_destroyed(kind: Kind) -> None:
    async with file_room(kind) as room, room.line() as (reader, writer):
        size = 12 * MIB  # more than the kernel keeps for a client that does not read
        await room.have("a", bytes(size))
        writer.write(room.begin_of("GET", "a"))
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert (await room.client.delete(f"/sandboxes/{room.id}")).status_code == 204
        got = 0
        try:
            while piece := await reader.read(MIB):
                got += len(piece)
        except ConnectionResetError:
            pass
        assert got < size
