"""The launcher's protocol: a record that was written is read, and whatever else comes is a ProtocolError."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.launcher.protocol import CREATE, CreatePlan, ProtocolError, Reader, Writer, pack_command, unpack_command
from app.launcher.protocol.files import (
    END,
    HEAD,
    KINDS,
    LONGEST,
    NODE,
    STAT,
    FileRecord,
    end_of_entries,
    pack_head,
    request,
)

u8, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
i32 = st.integers(-(2**31), 2**31 - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u8": u8,
    "u32": u32,
    "i32": i32,
    "u64": u64,
    "blob": st.binary(max_size=100),
    "text": st.text(max_size=100),
}
fields = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])), max_size=12
)
nodes = st.builds(FileRecord, st.integers(0, len(KINDS) - 1), u64, u32, st.integers(-(2**63), 2**63 - 1), u64)
READS = ("u8", "u32", "i32", "u64", "blob", "text", "rest", "end")


@given(u8, fields)
def test_fields_come_back_in_their_order(kind: int, record: list[tuple[str, Any]]) -> None:
    writer = Writer(kind)
    for name, value in record:
        assert getattr(writer, name)(value) is writer
    source = Reader(bytes(writer.data))
    assert source.u8() == kind
    assert [getattr(source, name)() for name, _ in record] == [value for _, value in record]
    source.end()


@given(st.binary(max_size=300), st.lists(st.sampled_from(READS), max_size=12))
def test_any_bytes_read_as_anything_are_a_value_or_a_protocol_error(data: bytes, reads: list[str]) -> None:
    source = Reader(data)
    with contextlib.suppress(ProtocolError):
        for name in reads:
            getattr(source, name)()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_plan_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        source = Reader(data)
        plan = CreatePlan.read(source)
        again = bytes(plan.write(Writer(CREATE)).data[1:])
        assert data.startswith(again), "what was read is what was there"


paths = st.lists(st.text(max_size=10), max_size=3)
plans = st.builds(
    CreatePlan, *[st.text(max_size=10)] * 3, u32, u64, u64, u32, st.booleans(), read_only=paths, read_write=paths
)


@given(plans, st.data())
def test_a_plan_with_one_byte_changed_is_a_plan_or_a_protocol_error(plan: CreatePlan, data: st.DataObject) -> None:
    record = bytearray(plan.write(Writer(CREATE)).data[1:])
    record[data.draw(st.integers(0, len(record) - 1))] = data.draw(u8)
    with contextlib.suppress(ProtocolError):
        CreatePlan.read(Reader(bytes(record)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_command_or_a_protocol_error(data: bytes) -> None:
    for body in (data, b"\0" + data):
        with contextlib.suppress(ProtocolError):
            assert pack_command(*unpack_command(body)) == body


# --- files


@given(nodes, st.binary(max_size=300), st.binary(max_size=300))
def test_an_entry_comes_back_with_its_names(node: FileRecord, name: bytes, target: bytes) -> None:
    packed = pack_head(node, name, target)
    *numbers, name_size, target_size = HEAD.unpack(packed[: HEAD.size])
    rest = packed[HEAD.size :]
    assert (tuple(numbers), rest[:name_size], rest[name_size:]) == (node.fields(), name, target)
    assert len(rest) == name_size + target_size


@given(u64)
def test_the_end_of_entries_is_no_entry_and_carries_its_number(number: int) -> None:
    kind, size, *zeros = HEAD.unpack(end_of_entries(number))
    assert (kind, size, any(zeros)) == (END, number, False)
    assert kind >= len(KINDS)


@given(st.binary(min_size=NODE.size - 1, max_size=NODE.size + 1))
def test_any_bytes_are_a_node_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        node = FileRecord.read(Reader(data))
        assert node.kind < len(KINDS)
        assert NODE.pack(*node.fields()) == data[: NODE.size]


@given(st.binary(max_size=LONGEST + 1), u32)
def test_a_request_carries_its_path_as_bytes(path: bytes, mode: int) -> None:
    source = Reader(bytes(request(STAT, path).u32(mode).data))
    assert source.u8() == STAT
    if len(path) <= LONGEST:
        assert (source.blob(LONGEST), source.u32()) == (path, mode)
        return
    with contextlib.suppress(ProtocolError):
        source.blob(LONGEST)
        raise AssertionError("a path that no kernel takes was read")
