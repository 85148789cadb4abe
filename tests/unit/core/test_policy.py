from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidRequest, PolicyTooBroad
from app.core.policy import Filesystem, FilesystemRequest, Policy, check_path, narrow

part = st.sampled_from(["usr", "usr2", "etc", "tmp", "workspace", "a", "..", ".", "", "us", "usr "])
path = st.builds(
    lambda parts, lead: lead + "/".join(parts), st.lists(part, max_size=4), st.sampled_from(["/", "", "//"])
)
clean = st.builds(
    lambda parts: "/" + "/".join(parts), st.lists(st.sampled_from(["usr", "usr2", "etc", "tmp", "a"]), max_size=3)
)
profiles = st.builds(
    lambda ro, rw: Policy(filesystem=Filesystem(tuple(ro), tuple(rw))),
    st.lists(clean, max_size=3),
    st.lists(clean, max_size=3),
)
wanted = st.one_of(st.none(), st.lists(st.one_of(path, clean), max_size=4))


def contains(roots: tuple[str, ...], path: str) -> bool:
    """Slowly and by components, unlike the code under test."""
    parts = [p for p in path.split("/") if p]
    return any(parts[: len(r)] == r for r in ([p for p in root.split("/") if p] for root in roots))


@given(profiles, wanted, wanted)
def test_narrowed_policy_is_always_inside_the_profile(
    profile: Policy, read_only: list[str] | None, read_write: list[str] | None
) -> None:
    allowed = profile.filesystem
    try:
        result = narrow(profile, FilesystemRequest(read_only, read_write)).filesystem
    except PolicyTooBroad as refusal:
        asked = (read_only if refusal.pointer.endswith("read_only") else read_write) or []
        roots = allowed.read_write + (allowed.read_only if refusal.pointer.endswith("read_only") else ())
        assert any(not contains(roots, name) for name in asked)
        return
    except InvalidRequest:
        assert any(
            {".", ".."} & set(p.split("/")) or not p.startswith("/") for p in [*(read_only or []), *(read_write or [])]
        )
        return
    for name in result.read_write:
        assert contains(allowed.read_write, name)
    for name in result.read_only:
        assert contains(allowed.read_only + allowed.read_write, name)
    for name in (*result.read_only, *result.read_write):
        assert name == posixpath.normpath(name)
        assert name.startswith("/")
        assert not name.startswith("//")
    if read_only is None:
        assert result.read_only == allowed.read_only
    else:
        assert {tuple(p for p in n.split("/") if p) for n in read_only} == {
            tuple(p for p in n.split("/") if p) for n in result.read_only
        }


def test_narrowing_changes_nothing_but_the_files() -> None:
    profile = Policy(profile="loopback", loopback_tcp=True)
    assert narrow(profile, None) is profile
    assert narrow(profile, FilesystemRequest()) == profile
    narrowed = narrow(profile, FilesystemRequest(read_write=[]))
    assert (narrowed.profile, narrowed.loopback_tcp, narrowed.filesystem.read_write) == ("loopback", True, ())


def test_name_that_only_begins_like_an_allowed_one_is_outside() -> None:
    with pytest.raises(PolicyTooBroad) as refusal:
        narrow(Policy(), FilesystemRequest(read_only=["/usrlocal"]))
    assert refusal.value.pointer == "/policy/filesystem/read_only"
    assert "/usr" in refusal.value.ceiling


def test_read_only_path_cannot_be_asked_for_as_writable_but_the_reverse_may() -> None:
    with pytest.raises(PolicyTooBroad):
        narrow(Policy(), FilesystemRequest(read_write=["/usr"]))
    assert narrow(Policy(), FilesystemRequest(read_only=["/workspace"])).filesystem.read_only == ("/workspace",)


@pytest.mark.parametrize(
    "bad", ["", "usr", "/usr/../etc", "/./usr", "/usr\0", "/" + "a" * 4095, "/\ud800", "/" + "ä" * 2048]
)
def test_unclean_path_is_refused_with_its_pointer(bad: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_path(bad, "/policy/x")
    assert [e.pointer for e in refusal.value.errors] == ["/policy/x"]


@pytest.mark.parametrize(("raw", "kept"), [("/", "/"), ("//", "/"), ("//usr//bin/", "/usr/bin"), ("/a b", "/a b")])
def test_clean_path_is_normalised(raw: str, kept: str) -> None:
    assert check_path(raw, "/x") == kept
