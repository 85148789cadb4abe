"""What is installed is locked: versions with hashes, made from the requirements of now. A wrong hash is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pip
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
GENERATORS = ROOT / "scripts/generators"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PROJECT["project"]["dependencies"]
BUILD = PROJECT["build-system"]["requires"]
DEV = PROJECT["project"]["optional-dependencies"]["dev"]

each_lock = pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)


def entries(lock: Path) -> list[str]:
    """One for each package: `name==version ; marker --hash=… --hash=…`, comments left out."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return re.sub(r" \\\n\s+", " ", "\n".join(lines)).splitlines()


def pinned(lock: Path) -> dict[str, set[str]]:
    """Versions by name; more than one where markers tell them apart."""
    found: dict[str, set[str]] = {}
    for entry in entries(lock):
        name, version = entry.split(" ")[0].split("==")
        found.setdefault(name, set()).add(version)
    return found


@each_lock
def test_every_package_has_one_version_and_hashes_and_no_address(lock: Path) -> None:
    assert entries(lock)
    for entry in entries(lock):
        assert re.fullmatch(r"[a-z0-9.-]+==\S+( ; .+?)?( --hash=sha256:[0-9a-f]{64})+", entry), entry
    assert "://" not in lock.read_text()


def test_locks_are_made_from_the_requirements_of_now() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "scripts/lock"), "--check"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_changed_requirement_makes_a_lock_stale(tmp_path: Path) -> None:
    for name in ("scripts", "requirements", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    with (tmp_path / "requirements/boxlite.in").open("a") as requirements:
        requirements.write("another\n")
    check = [sys.executable, str(tmp_path / "scripts/lock"), "--check"]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert checked.stderr.startswith("requirements/boxlite.txt was not made from the requirements of now")


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [("runtime", RUNTIME), ("build", BUILD), ("dev", [*RUNTIME, *BUILD, *DEV])],
    ids=["runtime", "build", "dev"],
)
def test_lock_has_every_requirement_of_the_project_within_its_range(lock: str, wanted: list[str]) -> None:
    found = pinned(ROOT / f"requirements/{lock}.txt")
    for requirement in map(Requirement, wanted):
        assert all(requirement.specifier.contains(version) for version in found[requirement.name]), requirement


@pytest.mark.parametrize("lock", ["runtime", "build"])
def test_tests_run_with_the_versions_that_are_shipped(lock: str) -> None:
    assert pinned(ROOT / f"requirements/{lock}.txt").items() <= pinned(ROOT / "requirements/dev.txt").items()


def test_boxlite_is_one_version_everywhere() -> None:
    (version,) = pinned(ROOT / "requirements/boxlite.txt")["boxlite"]
    assert f"BOXLITE_VERSION={version}\n" in (ROOT / "deploy/boxlite/cache.sh").read_text()
    assert f"ARG VERSION={version}\n" in (ROOT / "deploy/boxlite/Dockerfile").read_text()


@pytest.mark.parametrize(
    "path", ["Dockerfile", "deploy/boxlite/build-server", "scripts/install", "scripts/generators/tools.sh"]
)
def test_pip_takes_nothing_without_a_hash(path: str) -> None:
    """Each line that installs takes a lock; only the project itself, built by a locked backend, has none."""
    text = re.sub(r"\\\n\s*", "", (ROOT / path).read_text())
    installs = re.findall(r"(?:pip install (?!--quiet .*ignore\))|pip_install\[@\]}\" ).*", text, re.MULTILINE)
    assert installs
    for line in installs:
        locked = "--require-hashes" in line and "--only-binary :all:" in line
        assert locked or "--no-deps --no-build-isolation --editable" in line, line


def test_npm_and_java_take_nothing_without_a_hash() -> None:
    packages = json.loads((GENERATORS / "node/package-lock.json").read_text())["packages"]
    assert len(packages) > 100
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert not name or package["integrity"].startswith("sha512-"), name
    jars = (GENERATORS / "java.sha256").read_text().splitlines()
    assert len(jars) > 10
    assert all(re.fullmatch(r"[0-9a-f]{64}  \S+\.jar", line) for line in jars)


# --- scripts/install, in a checkout of two small packages


def make_wheel(folder: Path, name: str) -> str:
    """A wheel with one empty module. Returns its digest."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the real script, an empty lock for the backend, and a backend that hands out a wheel that is there."""
    root = tmp_path_factory.mktemp("checkout")
    make_wheel(root, "project")
    for folder in ("scripts", "requirements", "index"):
        (root / folder).mkdir()
    shutil.copy(ROOT / "scripts/install", root / "scripts")
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "project"\nversion = "1.0"\n'
    )
    (root / "backend.py").write_text(
        "import shutil\ndef build_editable(folder, *_, **__):\n"
        "    return shutil.copy('project-1.0-py3-none-any.whl', folder).rpartition('/')[2]\n"
    )
    for lock in ("build", "dev"):
        (root / f"requirements/{lock}.txt").touch()
    # pip is borrowed: to unpack it takes longer than all of these tests.
    venv.create(root / ".venv", with_pip=False)
    (packages,) = root.glob(".venv/lib/*/site-packages")
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    return root


def install(checkout: Path, entry: str) -> tuple[int, str, bool]:
    """Its status, what it said, and whether the package is there afterwards."""
    (checkout / "requirements/runtime.txt").write_text(entry + "\n")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "index"), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [checkout / "scripts/install"], env=os.environ | offline, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr, bool(list(checkout.glob(".venv/lib/*/site-packages/little.py")))


def test_install_refuses_a_package_whose_hash_is_not_the_locked_one(checkout: Path) -> None:
    digest = make_wheel(checkout / "index", "little")
    status, said, there = install(checkout, f"little==1.0 --hash=sha256:{'0' * 64}")
    assert status == 1
    assert "DO NOT MATCH THE HASHES" in said
    assert digest in said, "what it got"
    assert not there
    status, said, there = install(checkout, "little==1.0")
    assert (status, there) == (1, False), "a line without a hash"
    assert "Hashes are required" in said
    assert install(checkout, f"little==1.0 --hash=sha256:{digest}")[::2] == (0, True)


# --- scripts/audit, over a database with one vulnerability


class Database(BaseHTTPRequestHandler):
    """OSV's way to ask: a package and a version in a POST, `vulns` in the answer."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [{"id": "CVE-2026-0001", "summary": "it is bad", "affected": []}]
        answer = json.dumps({"vulns": found} if asked["package"]["name"] == "pydantic" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def database() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def audit(url: str) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "scripts/audit"), "--vulnerability-service=osv", f"--osv-url={url}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_audit_fails_when_a_locked_package_has_a_known_vulnerability(database: str) -> None:
    status, said = audit(database)
    assert status == 1
    assert f"pydantic {min(pinned(ROOT / 'requirements/runtime.txt')['pydantic'])}: CVE-2026-0001" in said[0]
    assert re.fullmatch(r"audit: \d+ packages, [12] known vulnerabilities", said[-1])


def test_audit_without_a_database_is_skipped_with_the_reason() -> None:
    status, said = audit("http://127.0.0.1:9")
    assert status == 0
    assert said[0].startswith("audit: skipped: no database of vulnerabilities can be reached: requests.exceptions.")


# --- make sbom


def test_sbom_lists_every_locked_package_with_its_version_and_hashes(tmp_path: Path) -> None:
    target = tmp_path / "sbom/bulkhead.json"
    subprocess.run(["make", "--silent", "sbom", f"SBOM={target}"], cwd=ROOT, check=True)
    bom = json.loads(target.read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", PROJECT["project"]["name"])
    listed = {(c["name"], c["version"], frozenset(hashes_of(c))) for c in bom["components"]}
    assert listed == {
        (*entry.split(" ")[0].split("=="), frozenset(re.findall("--hash=sha256:(\\S+)", entry)))
        for entry in entries(ROOT / "requirements/runtime.txt")
    }


def hashes_of(component: dict[str, Any]) -> list[str]:
    (distribution,) = (found for found in component["externalReferences"] if found["type"] == "distribution")
    return [found["content"] for found in distribution["hashes"]]
