"""One run of schemathesis against a service, and what it reports."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.kernel import host
from tests.service import PROJECT, Service

CONFIGURATION = Path(__file__).parent / "schemathesis.toml"
# A longer run, with another seed each time: BULKHEAD_TEST_FUZZ_SECONDS=600 scripts/test tests/properties
SECONDS = int(os.environ.get("BULKHEAD_TEST_FUZZ_SECONDS", "0"))
SLACK_SECONDS = 900


def alive(service: Service) -> list[str]:
    """What the backend without isolation has not got back yet; of a service of `null_service.py`."""
    told = service.data / "alive"
    told.unlink(missing_ok=True)
    service.process.send_signal(signal.SIGUSR1)
    host.until(told.exists, "the service tells what is alive")
    return list(json.loads(told.read_text()))


@dataclass(frozen=True)
class Run:
    status: int
    printed: str
    report: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def followed(self) -> set[str]:
        """The links of the document that led to a request, as `METHOD path -> [status] name -> METHOD path`."""
        return {
            case["transition"]["id"]
            for case in self._cases()
            if case.get("is_transition_applied") and not case["transition"]["is_inferred"]
        }

    @property
    def created(self) -> set[str]:
        """The ids of the sandboxes that POST /sandboxes told."""
        return {
            json.loads(base64.b64decode(response["content"]["$base64"]))["id"]
            for event in self.events
            for interaction in event.get("ScenarioFinished", {}).get("recorder", {}).get("interactions", {}).values()
            if (request := interaction["request"])["method"] == "POST"
            and urlsplit(request["uri"]).path == "/sandboxes"
            and (response := interaction["response"])
            and response["status_code"] in {HTTPStatus.OK, HTTPStatus.CREATED}
        }

    def _cases(self) -> Iterator[dict[str, Any]]:
        for event in self.events:
            yield from event.get("ScenarioFinished", {}).get("recorder", {}).get("cases", {}).values()


def run(service: Service, folder: Path, phases: str, examples: int, *options: str) -> Run:
    """`examples`: the measure of the work, per operation or as scenarios; not looked at where a time is given."""
    bounds = ("--max-time", str(SECONDS)) if SECONDS else ("-n", str(examples), "--generation-deterministic")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
            *("run", f"{service.url}/openapi.json", "--no-color", "--phases", phases, *bounds),
            *("--report", "json,ndjson", "--report-json-path", str(folder / "report.json")),
            *("--report-ndjson-path", str(folder / "events.ndjson"), *options),
        ],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS + SLACK_SECONDS,
    )
    events = [json.loads(line) for line in (folder / "events.ndjson").read_text().splitlines()]
    return Run(ended.returncode, ended.stdout, json.loads((folder / "report.json").read_text()), events)


def links_of(document: dict[str, Any]) -> set[str]:
    """All that the document has, as `Run.followed` writes them."""
    labels = {
        operation["operationId"]: f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    found = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                for name, link in answer.get("links", {}).items():
                    target = link.get("operationId", name)
                    source = labels[operation["operationId"]]
                    found.add(f"{source} -> [{status}] {name} -> {labels[target]}")
    return found
