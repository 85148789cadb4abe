"""The operator's secrets on their way to the gateway, at the start and when their file changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.operator_secrets import OperatorSecrets
from app.serving import secrets_feed
from app.serving.secrets_feed import SecretsFeed, SecretsSender
from app.settings.secrets_file import SecretsFileError


def secret(value: str) -> str:
    return f'[llm]\nvalue = "{value}"\nhosts = ["api.test"]\n'


def put(path: Path, content: str, mode: int = 0o600) -> None:
    """Replaces the file as editors do: by another one."""
    beside = path.with_name("beside")
    beside.touch(mode=mode)
    beside.write_text(content)
    beside.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.toml"
    path.touch(mode=0o600)
    path.write_text(secret("one"))
    return path


@pytest.fixture
def sender(path: Path) -> Iterator[SecretsSender]:
    sender = SecretsSender(path)
    yield sender
    sender.close()


def feed_of(sender: SecretsSender, path: Path, secrets: OperatorSecrets) -> SecretsFeed:
    return SecretsFeed(secrets, path, os.dup(sender.gateways.fileno()))


def value(secrets: OperatorSecrets) -> str | None:
    found = secrets.find("llm")
    return None if found is None else found.value.reveal()


async def changed(secrets: OperatorSecrets) -> None:
    heard = asyncio.Event()
    secrets.listen(heard.set)
    async with asyncio.timeout(60):
        await heard.wait()


async def test_the_gateway_has_them_before_it_serves(sender: SecretsSender, path: Path) -> None:
    secrets = OperatorSecrets()
    put(path, "bad")  # it does not look for itself
    feed = feed_of(sender, path, secrets)
    assert value(secrets) == "one"
    feed.stop()


async def test_a_changed_file_is_passed_on(sender: SecretsSender, path: Path) -> None:
    secrets = OperatorSecrets()
    feed = feed_of(sender, path, secrets)
    feed.start()
    put(path, secret("two"))
    sender.look()
    await changed(secrets)
    assert value(secrets) == "two"
    put(path, "")
    sender.look()
    await changed(secrets)
    assert secrets.names == ()
    feed.stop()


async def test_a_file_that_became_bad_keeps_what_was_there_and_is_told_once(
    sender: SecretsSender, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = OperatorSecrets()
    feed = feed_of(sender, path, secrets)
    feed.start()
    put(path, secret("canary")[:-4])
    sender.look()
    sender.look()
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"the secrets file {path} is not TOML" in said
    assert "the secrets that were read before stay in force" in said
    assert "canary" not in said
    put(path, secret("canary"), 0o640)
    sender.look()
    assert "has the mode 0640" in capfd.readouterr().err
    path.unlink()  # noqa: ASYNC240
    sender.look()
    assert "No such file" in capfd.readouterr().err
    assert value(secrets) == "one"
    put(path, secret("three"))
    sender.look()
    await changed(secrets)
    assert value(secrets) == "three"
    feed.stop()


def test_a_file_that_did_not_change_is_not_read_again(
    sender: SecretsSender, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets_feed, "read_secrets", lambda _: pytest.fail("it was read"))
    sender.look()


def test_a_gateway_that_takes_nothing_holds_nobody_up_and_gets_the_last(sender: SecretsSender, path: Path) -> None:
    for number in range(10):  # the socket holds four
        put(path, f"{secret(f'number {number}')}#{'x' * 60_000}")
        sender.look()

    async def taken() -> None:
        secrets = OperatorSecrets()
        feed = feed_of(sender, path, secrets)
        feed.start()
        while value(secrets) != "number 9":
            sender.look()
            await changed(secrets)
        feed.stop()

    asyncio.run(taken())


@pytest.mark.parametrize("content", ["canary", secret("canary")[:-2]])
def test_a_file_that_is_bad_at_the_start_refuses_it(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(SecretsFileError, match="is not TOML") as caught:
        SecretsSender(path)
    assert "canary" not in str(caught.value)


async def test_a_gateway_without_a_supervisor_reads_the_file_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets_feed, "LOOK_SECONDS", 0.01)
    secrets = OperatorSecrets()
    feed = SecretsFeed(secrets, path, -1)
    assert value(secrets) == "one"
    feed.start()
    put(path, secret("two"))
    await changed(secrets)
    assert value(secrets) == "two"
    feed.stop()
