from __future__ import annotations

import pytest

from app.egress.config import EgressConfig, InvalidConfig


def test_config_is_read_as_it_was_written() -> None:
    config = EgressConfig(1000, ("127.0.0.0/8",), "127.0.0.1:53", ("127.0.0.1:8000",), 1, 2, 3, 4)
    assert EgressConfig.load(config.dump()) == config


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"gateway_uid":1,"more":2}', b'{"gateway_uid":1,"service":5}'])
def test_what_is_no_config_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidConfig):
        EgressConfig.load(text)
