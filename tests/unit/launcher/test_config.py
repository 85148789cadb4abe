"""The launcher's configuration: lines that come back as they went, and nothing unknown."""

from __future__ import annotations

import pytest

from app.launcher.config import OPTIONAL_LAYERS, Config, parse


def test_a_configuration_survives_the_way() -> None:
    config = Config()
    config.socket, config.gateway_uid, config.uid_first, config.uid_count = "/run/a b/x.sock", 7, 1000, 20
    config.root_paths, config.etc_paths, config.accept_missing = ["/usr", "/opt/a b"], [], list(OPTIONAL_LAYERS)
    again = parse(config.dump())
    assert {name: getattr(again, name) for name in Config.__slots__} == {
        name: getattr(config, name) for name in Config.__slots__
    }


def test_empty_lines_and_comments_are_skipped() -> None:
    assert parse("\n# a comment\nmax_sandboxes 7\n").max_sandboxes == 7


@pytest.mark.parametrize(
    "line", ["nonsense 1", "max_sandboxes x", "max_sandboxes -1", "max_sandboxes", "uid_first 1.5", "uid_first ²"]
)
def test_a_line_that_is_not_understood_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=line.split(maxsplit=1)[0]):
        parse(line + "\n")


@pytest.mark.parametrize("layer", ["seccomp", "network_namespace", "no_new_privs", ""])
def test_a_layer_that_is_always_required_cannot_be_given_up(layer: str) -> None:
    with pytest.raises(ValueError, match="may be missing"):
        parse(f"accept_missing {layer}\n")
