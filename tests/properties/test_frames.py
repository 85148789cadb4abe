"""The frames of a stream: what a client sends is understood or refused as a problem, and what we send is understood."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.api.streams.frames import CHANNEL_BYTE, StdinEof, gap_frame, problem_frame, understand
from app.client.errors import ClientError
from app.client.stream import Exited, Gap, Output, Stream
from app.core import follow
from app.core.commands import SIGNALS
from app.core.errors import InvalidRequest, PayloadTooLarge
from app.core.models import Channel, Terminal

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
fields = {
    "type": st.sampled_from(["signal", "resize", "stdin_eof", "start", "exit"]) | json_values,
    "signal": st.sampled_from(["SIGINT", "int", "SIGRTMIN+1", "", "SIG"]) | json_values,
    "rows": st.integers(-1, 70_000) | json_values,
    "cols": st.integers(-1, 70_000) | json_values,
    "more": json_values,
}
frames = st.fixed_dictionaries({}, optional=fields)


def stream() -> Stream:
    async def nowhere(_: str) -> Any:
        raise AssertionError("nobody dials here")

    return Stream(nowhere, lambda _: None)  # type: ignore[arg-type]  # of a Connector only the call is used


def refusal_of(text: str) -> InvalidRequest | PayloadTooLarge | None:
    try:
        found = understand(text)
    except (InvalidRequest, PayloadTooLarge) as refusal:
        body = json.loads(problem_frame(refusal, "req_1"))
        assert body["type"] == "problem"
        assert body["problem"]["status"] in {413, 422}
        return refusal
    assert isinstance(found, StdinEof | Terminal) or found in SIGNALS
    return None


@given(st.text())
def test_any_text_of_a_client_is_understood_or_a_problem(text: str) -> None:
    refusal_of(text)


@given(frames)
def test_any_object_of_a_client_is_understood_or_a_problem_that_names_a_field_of_it(frame: dict[str, Any]) -> None:
    refusal = refusal_of(json.dumps(frame))  # NaN and Infinity too, which json.dumps writes as such
    if isinstance(refusal, InvalidRequest):
        assert all(error.detail for error in refusal.errors)


@given(st.sampled_from(["[", '{"a":', '{"signal":']), st.integers(1, 60_000))
def test_nesting_is_no_way_to_end_the_service(opening: str, depth: int) -> None:
    assert refusal_of(opening * depth) is not None


@given(st.integers(1, 65_535), st.integers(1, 65_535), st.sampled_from(sorted(SIGNALS)))
def test_what_our_own_client_sends_is_understood(rows: int, cols: int, number: int) -> None:
    assert understand(json.dumps({"type": "resize", "rows": rows, "cols": cols})) == Terminal(rows, cols)
    assert understand(json.dumps({"type": "resize", "rows": float(rows), "cols": cols})) == Terminal(rows, cols)
    assert understand(json.dumps({"type": "signal", "signal": SIGNALS[number]})) == number
    assert understand(json.dumps({"signal": SIGNALS[number]})) == number


# --- our own decoder


@given(st.lists(st.tuples(st.sampled_from(list(Channel)), st.binary(max_size=100)), max_size=20))
def test_output_comes_back_as_it_was_sent(pieces: list[tuple[Channel, bytes]]) -> None:
    client = stream()
    for channel, data in pieces:
        event = client._understand(CHANNEL_BYTE[channel] + data)
        assert event == Output(channel.value, data)
    sums = {}
    for channel in Channel:
        whole = b"".join(data for of, data in pieces if of is channel)
        assert client.received[channel.value].offset == len(whole)
        sums[channel.value] = {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    end = client._understand(json.dumps({"type": "exit", "exit_code": 3, "exit": {}, **sums}))
    assert end == Exited(3, {})


@given(st.sampled_from(list(Channel)), st.integers(0, 2**60), st.integers(1, 2**60) | st.none())
def test_a_gap_comes_back_as_it_was_sent(channel: Channel, begin: int, size: int | None) -> None:
    client, end = stream(), None if size is None else begin + size
    assert client._understand(gap_frame(follow.OutputGap(channel, begin, end))) == Gap(channel.value, begin, end)
    assert client.received[channel.value].offset == (end or 0)


server_frames = st.fixed_dictionaries(
    {"type": st.sampled_from(["start", "gap", "exit", "problem"]) | json_values},
    optional={
        "channel": st.sampled_from(["stdout", "stderr"]) | json_values,
        **{name: st.integers() | json_values for name in ("from", "to", "exit_code", "stdout_offset", "stdin_bytes")},
        **dict.fromkeys(("exit", "stdout", "stderr", "problem"), json_values),
    },
)


@given(st.binary() | st.text() | server_frames.map(json.dumps))
def test_a_server_that_says_anything_at_all_gets_no_other_error_from_our_client(message: str | bytes) -> None:
    with contextlib.suppress(ClientError):
        stream()._understand(message)
