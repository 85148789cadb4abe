"""What a create of this would make: images by the operator's table or patterns, hosts, whole limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.backends.boxlite.images import Images, canonical
from app.backends.boxlite.network import narrowed
from app.core.capabilities import Capability
from app.core.errors import InvalidRequest, LimitTooHigh, PolicyNotSupported, PolicyTooBroad, UnknownImage
from app.core.limits import Limits
from app.settings import SettingsError, load_settings
from app.settings.boxlite import ImageSource
from tests.boxlite.rig import SPEC, rig, with_network
from tests.processor_time import cost

DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("python", "docker.io/library/python"),
        ("python:3.12", "docker.io/library/python:3.12"),
        ("python" + DIGEST, "docker.io/library/python" + DIGEST),
        ("user/tool:1", "docker.io/user/tool:1"),
        ("docker.io/python", "docker.io/library/python"),
        ("docker.io/user/tool", "docker.io/user/tool"),
        ("ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"),
        ("127.0.0.1:5000/tool:1", "127.0.0.1:5000/tool:1"),
        ("localhost/tool", "localhost/tool"),
        ("registry:5000/tool", "registry:5000/tool"),
        *((wrong, None) for wrong in (
            "", " ", "/etc", "./x", "../x", "a/../b", "a//b", "A", "a:", "a@sha256:0", "a:" + "t" * 129, "a b", "a\n",
            "http://x/y", "rootfs:/x", "GHCR.io/x", "ü", "\ud800", "a/", "x.y/", "-a", "a-", "a@sha512:" + "0" * 64,
            "a\0", "host:99999999/x", "user@host/x",
        )),
    ],
)  # fmt: skip
def test_references(reference: str, full: str | None) -> None:
    assert canonical(reference) == full


TABLE = {
    "python": ImageSource(rootfs_path="/srv/python"),
    "tool": ImageSource(reference="127.0.0.1:5000/tool:1"),
}


def test_the_table_comes_first_and_alone_names_a_path() -> None:
    images = Images(TABLE, "tool", ("docker.io/*",))
    assert images.fields(images.chosen("python")) == {"rootfs_path": "/srv/python"}
    assert images.fields(images.chosen(None)) == {"image": "127.0.0.1:5000/tool:1"}
    assert images.fields(images.chosen("alpine:3")) == {"image": "docker.io/library/alpine:3"}, (
        "a short name might be another registry's on the server"
    )


@pytest.mark.parametrize(
    ("patterns", "image", "permitted"),
    [
        (("docker.io/*",), "alpine", True),
        (("docker.io/library/*",), "alpine", True),
        (("docker.io/library/*",), "user/alpine", False),
        (("docker.io/*",), "ghcr.io/x/y", False),
        (("docker.io/*",), "docker.io.evil.test/x", False),
        (("ghcr.io/us/*",), "ghcr.io/us/x", True),
        (("ghcr.io/us/*",), "ghcr.io/usx/x", False),
        ((), "alpine", False),
        (("*",), "127.0.0.1:5000/x", True),
        (("docker.io/library/python:3.*",), "python:3.12", True),
        (("docker.io/library/python:3.*",), "python:2", False),
        (("*",), "../x", False),
    ],
)
def test_what_clients_may_name_beside_the_table(patterns: tuple[str, ...], image: str, permitted: bool) -> None:
    images = Images(TABLE, None, patterns)
    if permitted:
        assert images.chosen(image) == image
    else:
        with pytest.raises(UnknownImage, match="known: python, tool"):
            images.chosen(image)


def test_no_image_and_no_default() -> None:
    with pytest.raises(UnknownImage, match="no default"):
        Images(TABLE, None, ()).chosen(None)


# --- hosts


@pytest.mark.parametrize(
    ("asked", "permitted", "error"),
    [
        (("a.test",), (), PolicyNotSupported),
        ((), ("a.test",), InvalidRequest),  # an empty list is no rule at all for the server: everything
        (("b.test",), ("a.test",), PolicyTooBroad),
        (("*.a.test",), ("a.test",), PolicyTooBroad),
        (("10.0.0.0/7",), ("10.0.0.0/8",), PolicyTooBroad),
        (("evil-a.test",), ("*.a.test",), PolicyTooBroad),
        (("127.0.0.1",), ("*.a.test",), InvalidRequest),
        (("192.168.127.254",), ("192.168.0.0/16",), InvalidRequest),  # the server's loopback
        (("192.168.0.0/16",), ("192.168.0.0/16",), InvalidRequest),
        (("169.254.169.254",), ("*.a.test",), InvalidRequest),
        (("localhost",), ("*.a.test",), InvalidRequest),
        (("a.test:80",), ("a.test",), InvalidRequest),
        (("::1",), ("a.test",), InvalidRequest),
        (("*",), ("a.test",), InvalidRequest),
        (("a.test\n",), ("b.test",), PolicyTooBroad),
    ],
)
def test_hosts_that_may_not_be_reached(asked: tuple[str, ...], permitted: tuple[str, ...], error: type) -> None:
    with pytest.raises(error):
        narrowed(asked, permitted)


def test_hosts_that_may() -> None:
    wide = ("*.a.test", "b.test", "10.0.0.0/8")
    asked = ("X.A.test", "*.y.a.test", "b.test.", "10.1.2.3", "10.1.2.3", "10.1.0.0/16")
    assert narrowed(asked, wide) == ("x.a.test", "*.y.a.test", "b.test", "10.1.2.3", "10.1.0.0/16")


async def test_a_list_of_hosts_is_bounded_in_bytes_as_every_beat_brings_those_of_all_boxes() -> None:
    async with rig(opened=False, direct_allow="*.example.org") as r:
        names = [f"{'a' * 50}.{'b' * 50}.n{n}.example.org" for n in range(64)]
        r.backend.fit(with_network(*names[:16]))
        with pytest.raises(InvalidRequest):
            r.backend.fit(with_network(*names))


@pytest.mark.parametrize("allow", [(), ("10.0.0.0/8",)])
async def test_direct_is_promised_only_where_the_operator_permits_it(allow: tuple[str, ...]) -> None:
    async with rig(opened=False, direct_allow=",".join(allow)) as r:
        assert (Capability.NETWORK_DIRECT in r.backend.info.capabilities) is bool(allow)
        if not allow:
            with pytest.raises(PolicyNotSupported, match="DIRECT_ALLOW"):
                r.backend.fit(with_network("10.0.0.1"))
        else:
            assert r.backend.fit(with_network("10.0.0.1")).policy.network.allow == ("10.0.0.1",)


# --- limits


async def test_limits_become_whole_and_never_less() -> None:
    async with rig(opened=False) as r:
        fitted = r.backend.fit(replace(SPEC, limits=Limits(cpus=0.1, memory_mib=65, disk_mib=1)))
        assert (fitted.limits.cpus, fitted.limits.memory_mib, fitted.limits.disk_mib) == (1, 65, 1024)
        fitted = r.backend.fit(replace(SPEC, limits=Limits(cpus=16, memory_mib=64, disk_mib=1025)))
        assert (fitted.limits.cpus, fitted.limits.disk_mib) == (16, 2048)


async def test_limits_that_the_server_would_take_and_not_keep() -> None:
    """64 cpus boot and silently have 16; 16 MiB do not boot."""
    async with rig(opened=False) as r:
        assert r.backend.info.ceilings == {"cpus": 16}
        with pytest.raises(LimitTooHigh, match="16"):
            r.backend.fit(replace(SPEC, limits=Limits(cpus=16.5)))
        with pytest.raises(InvalidRequest, match="64"):
            r.backend.fit(replace(SPEC, limits=Limits(cpus=1, memory_mib=63)))


@pytest.mark.parametrize("key", ["a b", "a\n", "ключ", "a\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start_and_not_repeated(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_BOXLITE__API_KEY", key)
    with pytest.raises(SettingsError, match="printable ASCII") as caught:
        load_settings()
    assert key not in str(caught.value) and key not in repr(caught.value)


def test_a_reference_costs_no_more_than_its_length() -> None:
    for hostile in ("a" + "-a" * 50_000 + "!", "a/" * 50_000, "a__" * 50_000, "a:" * 50_000, "a." * 50_000 + "/"):
        assert canonical(hostile) is None
        assert cost(lambda hostile=hostile: canonical(hostile), 2) < 0.2  # type: ignore[misc]
