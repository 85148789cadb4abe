"""What a sandbox did with its network: as a table, line by line, and what was refused, at the end of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes

from app.cli.secrets import read_rules
from app.cli.show import plain, put, put_json, put_line, put_table, say, short_time, size
from app.client import Client, ClientError
from app.core.network_rules import parse_rule

LINES = 8  # about what was refused; a program may ask for a thousand names
_OF_REQUESTS = ("http_method", "http_path")
_PATH_SHOWN = 256  # characters; a path of so many may have been cut
HTTPS = 443  # of a name that was only looked up nobody knows the port


# --- bulkhead network


async def change(client: Client, sandbox_id: str, body: dict[str, Any], *, as_json: bool) -> None:
    """Replaces the rules, and shows those that are in force then. Requests to hosts of secrets must be read."""
    rules = body["policy"]["network"]["allow"]
    secrets = (await client.sandbox(sandbox_id)).get("secrets") or {}
    hosts = {host for secret in secrets.values() for host in secret["hosts"]}
    changed = await client.update_sandbox(sandbox_id, {"policy": {"network": {"allow": read_rules(rules, hosts)}}})
    network = changed["policy"]["network"]
    if as_json:
        put_json(network)
    else:
        put("\n".join(plain(str(parse_rule(rule))) for rule in network["allow"]) or "nothing is permitted")


async def show(client: Client, sandbox_id: str, verdict: str | None, *, as_json: bool) -> None:
    found = [event async for event in client.network_events(sandbox_id, verdict)]
    if as_json:
        put_json(found)
    elif found:
        columns = ["AT", "VERDICT", "SENT", "RECEIVED", "REASON", "HOST"]  # the last may be long, and moves no other
        put_table(columns, [_row(event) for event in found])
    else:
        say(await _why_nothing(client, sandbox_id, verdict))


def _row(event: Mapping[str, Any]) -> list[str]:
    verdict, host, *others = _cells(event)
    return [short_time(event["at"]), verdict, *others, host]


async def _why_nothing(client: Client, sandbox_id: str, verdict: str | None) -> str:
    mode = (await client.sandbox(sandbox_id))["policy"]["network"]["mode"]
    if mode == "none":
        return f"the sandbox {sandbox_id} has no network (--network proxy --allow HOST:PORT gives one)"
    if mode != "proxy":
        return f"the network of the sandbox {sandbox_id} is {mode}: its connections are not known here"
    return f"the sandbox {sandbox_id} has {'been refused nothing' if verdict else 'used no network'} so far"


async def follow(client: Client, sandbox_id: str, verdict: str | None, *, as_json: bool) -> None:
    """One line for each event, until the sandbox ends."""
    async for event in client.follow_network(sandbox_id, verdict):
        if event.kind == "gap":
            say(f"{event.data.get('dropped')} events are no longer kept")
        elif as_json:
            put_line(event.data)
        else:
            verdict, host, sent, received, reason = _cells(event.data)
            why = f"  {reason}" if reason else ""
            put(plain(f"{event.data['at'][11:19]}  {verdict}  {host}  {sent} sent, {received} received{why}"))


def _cells(event: Mapping[str, Any]) -> list[str]:
    sizes = size(event["bytes_sent"]), size(event["bytes_received"])
    return [event["verdict"], _with_request(event), *sizes, event["reason"] or ""]


def _with_request(event: Mapping[str, Any]) -> str:
    """The host, and the method and path of a request that was refused."""
    return " ".join(text for text in (host_of(event), event.get("method"), event.get("path")) if text)


def host_of(event: Mapping[str, Any]) -> str:
    host, port = event["name"] or event["address"] or "", event["port"]
    if port is None:
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- at the end of a command


async def refused(client: Client, sandbox_id: str, since: str | None = None) -> list[dict[str, Any]] | None:
    """Distinct hosts, or requests where these are the reason, each with the event of its first refusal. `since`: a time
    of the API. None where the service does not tell."""
    begin = None if since is None else datetime.fromisoformat(since)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        async for event in client.network_events(sandbox_id, "refused"):
            if begin is None or datetime.fromisoformat(event["at"]) >= begin:
                found.setdefault((_what(event), event["reason"]), event)
    except ClientError:  # the command has its exit, which counts
        return None
    return list(found.values())


def advice(events: Sequence[Mapping[str, Any]], sandbox_id: str) -> list[str]:
    """A line for each host or request that was refused, with the option that would permit it."""
    lines = [f"refused: {_what(event)}{_at(event)}: {_why(event)}{_option(event)}" for event in events[:LINES]]
    if len(events) > LINES:
        lines.append(f"refused: {len(events) - LINES} more; to list them: bulkhead network --refused {sandbox_id}")
    return lines


def _what(event: Mapping[str, Any]) -> str:
    return _with_request(event) if event["reason"] in _OF_REQUESTS else host_of(event)


def _at(event: Mapping[str, Any]) -> str:
    """The address of a name that is refused for its address."""
    from app.core.addresses import REASONS

    return f" at {event['address']}" if event["name"] and event["address"] and event["reason"] in REASONS else ""


def _why(event: Mapping[str, Any]) -> str:
    from app.egress.reasons import sentence

    try:
        return sentence(event["reason"])
    except ValueError:  # a newer service
        return str(event["reason"])


def _option(event: Mapping[str, Any]) -> str:
    host, is_raw = event["name"] or event["address"] or "", event["name"] is None
    match event["reason"]:
        case "name" if event["port"] is None:
            return f" (--allow {host}:{HTTPS}, or another port: a look-up has no port)"
        case "name":
            return f" (--allow {host_of(event)})"
        case "silent" | "protocol":
            return f" (--allow-raw {host_of(event)})"
        case "rule":
            return f" ({'--allow-raw' if is_raw else '--allow'} {host_of(event)})"
        case "http_method" | "http_path" if rule := _rule_for_request(event):
            return f" (--allow-http '{rule}')"
    return ""


def _rule_for_request(event: Mapping[str, Any]) -> str:
    """A rule of --allow-http for this request alone. Empty where there can be none: for methods that are never passed
    on, and paths that servers read in more than one way, are too long, or have what patterns or shells read."""
    method, sent = event.get("method") or "", event.get("path") or ""
    try:
        path = unquote_to_bytes(sent).decode()
        parse_rule({"host": event["name"], "ports": [event["port"]], "http": [{"methods": [method], "paths": [path]}]})
    except ValueError:
        return ""
    is_plain = sent.isascii() and len(sent) < _PATH_SHOWN and not set(path) & set(" *'")
    return f"{host_of(event)} {method} {path}" if is_plain else ""
