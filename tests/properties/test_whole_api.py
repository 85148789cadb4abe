"""Whatever a client sends, the running service answers as its OpenAPI document says, and keeps nothing of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_leaks import nothing_stays
from tests.properties import runs
from tests.require import require
from tests.service import Service

KEY = "a-key-for-the-tests"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
ENV = {
    "BULKHEAD_API_KEYS": json.dumps([KEY]),
    **{f"BULKHEAD_CAPACITY__{name}": "100000" for name in ("SANDBOXES", "EXECUTIONS", "RECORDS")},
}
# The room of a disk is reserved at once, and many sandboxes live at one time: a host that has no more answers 507.
SMALL_DISKS = {f"BULKHEAD_LIMITS__DISK_MIB__{part}": "64" for part in ("DEFAULT", "CEILING")}
pytestmark = pytest.mark.timeout(3 * runs.SECONDS + runs.SLACK_SECONDS + 60)


def sandboxes(service: Service, query: str = "") -> Iterator[dict[str, Any]]:
    cursor = ""
    while cursor is not None:
        path = f"/sandboxes?limit=1000{query}" + (f"&cursor={cursor}" if cursor else "")
        status, answer = service.call("GET", path, headers=AUTHORIZED)
        assert status == 200, answer
        yield from answer["items"]
        cursor = answer["next_cursor"]


def check(service: Service, folder: Path, examples: int, scenarios: int, *options: str) -> None:
    """Each operation by itself, then along the links. `pytest -s` shows the summaries."""
    before = ids(service)
    each = runs.run(service, folder, "examples,coverage,fuzzing", examples, *options)
    chains = [
        runs.run(service, folder, "stateful", scenarios, "--include-path-regex", paths, *options)
        for paths in (r"^/sandboxes(/[^/]+(/[a-z]+)?)?$", "^/sandboxes$|/executions")
    ]
    followed = {link for chain in chains for link in chain.followed}
    document = service.call("GET", "/openapi.json")[1]
    links, operations = runs.links_of(document), each.report["operations"]
    for run in (each, *chains):
        print({name: run.report[name] for name in ("operations", "test_cases", "running_time")})
    print(f"links: {len(followed)} of {len(links)} followed, not {sorted(links - followed)}")
    for run in (each, *chains):
        assert run.status == 0, run.printed
    assert operations["tested"] == operations["total"] == sum(len(found) for found in document["paths"].values())
    assert followed <= links
    assert all("next_page" in link for link in links - followed), "only lists are long or not by chance"
    assert not [line for line in service.log if '"level": "error"' in line]
    nothing_is_left_of_runs(ids(service) - before, (each, *chains))


def ids(service: Service) -> set[str]:
    """Of all sandboxes that are listed, those that were deleted lately too."""
    return {sandbox["id"] for sandbox in sandboxes(service)}


def nothing_is_left_of_runs(listed: set[str], made: Iterable[runs.Run]) -> None:
    """Whatever POST /run answered: every sandbox that is listed was created by a client that was told so."""
    assert listed, "nothing was looked at"
    assert listed <= {sandbox for run in made for sandbox in run.created}


def delete_all(service: Service) -> None:
    for sandbox in sandboxes(service):
        assert service.call("DELETE", f"/sandboxes/{sandbox['id']}", headers=AUTHORIZED)[0] == 204


def test_over_the_backend_without_isolation(tmp_path: Path) -> None:
    with Service(tmp_path, ENV, module="tests.properties.null_service") as service:
        check(service, tmp_path, 8, 25, "--header", f"Authorization: Bearer {KEY}")
        delete_all(service)
        assert runs.alive(service) == []


def test_over_the_runtime_process(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    with Service(tmp_path_factory.mktemp("data"), SMALL_DISKS) as service:
        sandbox = service.create()  # whatever is opened once
        service.run(sandbox, "head", "-c", "3000000", "/dev/zero")
        service.call("DELETE", f"/sandboxes/{sandbox}")
        with nothing_stays(service):
            check(service, tmp_path, 4, 30)
            delete_all(service)
