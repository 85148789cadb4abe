"""Records: what was written is read, and whatever else comes is a ProtocolError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.launcher.protocol import (
    CREATE,
    MAX_PACKET,
    MOST_CERTIFICATE,
    RECORD,
    CreatePlan,
    ProtocolError,
    Reader,
    Writer,
    pack_command,
    unpack_command,
)

WORDS = st.lists(st.binary(max_size=50), max_size=20)
FLAGS = st.tuples(st.booleans(), st.booleans())
PATHS = st.lists(st.text(max_size=30), max_size=8)
PORTS = st.lists(st.integers(0, 65_535), max_size=20)


@given(
    st.text(max_size=16),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
    FLAGS,
    st.tuples(PATHS, PATHS),
    PORTS,
    st.binary(max_size=MOST_CERTIFICATE),
)
def test_a_plan_survives_the_way(
    name: str,
    sizes: tuple[int, int],
    flags: tuple[bool, bool],
    paths: tuple[list[str], list[str]],
    ports: list[int],
    authority: bytes,
) -> None:
    small, large = sizes
    plan = CreatePlan(name, "host", "default", small, large, large, small, flags[0], *paths, flags[1], ports, authority)
    source = Reader(bytes(plan.write(Writer(CREATE)).data))
    assert source.u8() == CREATE
    again = CreatePlan.read(source)
    source.end()
    assert {slot: getattr(again, slot) for slot in plan.__slots__} == {
        slot: getattr(plan, slot) for slot in plan.__slots__
    }


@given(WORDS, WORDS, st.binary(max_size=100))
def test_a_command_survives_the_way(argv: list[bytes], env: list[bytes], workdir: bytes) -> None:
    assert unpack_command(pack_command(argv, env, workdir)) == (argv, env, workdir)


@given(WORDS, st.data())
def test_a_command_that_was_cut_or_goes_on_is_an_error(argv: list[bytes], data: st.DataObject) -> None:
    whole = pack_command(argv, [], b"/")
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\0"):
        with pytest.raises(ProtocolError):
            unpack_command(wrong)


def test_numbers_keep_their_size_and_sign() -> None:
    data = bytes(Writer(7).u8(255).u32(2**32 - 1).i32(-1).u64(2**64 - 1).data)
    source = Reader(data)
    assert [source.u8(), source.u8(), source.u32(), source.i32(), source.u64()] == [7, 255, 2**32 - 1, -1, 2**64 - 1]
    assert source.rest() == b""


def test_a_length_beyond_the_limit_is_an_error_before_anything_is_read() -> None:
    for most, size in ((3, 4), (MAX_PACKET, 2**32 - 1)):
        with pytest.raises(ProtocolError):
            Reader(size.to_bytes(4, "little") + b"abcd").blob(most)
    with pytest.raises(ProtocolError):
        Reader((10**9).to_bytes(4, "little")).many(10**6)


@pytest.mark.parametrize("flags", [4, 128, 255])
def test_an_unknown_flag_is_an_error(flags: int) -> None:
    plan = CreatePlan("a", "host", "default", 1, 1, 1, 1, False, [], [])
    data = bytearray(plan.write(Writer(CREATE)).data[1:])
    data[-14] = flags  # before two counts, one of ports, and the length of the certificate
    with pytest.raises(ProtocolError):
        CreatePlan.read(Reader(bytes(data)))


def test_a_certificate_that_is_too_long_is_an_error() -> None:
    plan = CreatePlan("a", "host", "default", 1, 1, 1, 1, False, [], [], authority=bytes(MOST_CERTIFICATE + 1))
    with pytest.raises(ProtocolError):
        CreatePlan.read(Reader(bytes(plan.write(Writer(CREATE)).data[1:])))


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
def test_a_text_that_is_not_utf_8_is_an_error(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader(bytes(Writer(0).blob(raw).data[1:])).text()


def test_a_workers_record_has_one_size() -> None:
    assert RECORD.size == 13
