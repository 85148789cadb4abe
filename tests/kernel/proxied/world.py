"""The Internet of these tests: a name server that the egress process asks, servers on loopback addresses under names
that look public, and an authority that their clients in sandboxes trust by their own options."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import pwd
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import zipfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.kernel import host
from tests.service import PATIENCE

# Of the loopback network this process takes addresses of its own: another run on this host has others.
_OWN = divmod(os.getpid() % 16_384, 256)
NET = f"127.{64 + _OWN[0]}.{_OWN[1]}.0/24"
HOST = f"127.{64 + _OWN[0]}.{_OWN[1]}.1"  # where all servers listen, at their usual ports
OTHER = f"127.{128 + _OWN[0]}.{_OWN[1]}.1"  # not in NET, so no sandbox may reach it


class NameServer:
    """Answers from `names`: each has answers, which take turns; an answer is addresses, v4 and v6 mixed. Counts the
    questions."""

    def __init__(self) -> None:
        self.names: dict[str, list[Sequence[str]]] = {}
        self.asked: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(65_535)
            if not question:
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, packet: bytes) -> bytes:
        query = dns.message.from_wire(packet)
        answer = dns.message.make_response(query, recursion_available=True)
        (asked,) = query.question
        name = asked.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(asked.rdtype)
        self.asked[f"{name} {kind}"] += 1
        answers = self.names.get(name)
        if answers is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        else:
            turn = answers[min(self.asked[f"{name} {kind}"], len(answers)) - 1]
            fitting = [text for text in turn if (":" in text) == (kind == "AAAA")] if kind in ("A", "AAAA") else []
            if fitting:
                answer.answer.append(dns.rrset.from_text(asked.name, 0, "IN", kind, *fitting))
        return answer.to_wire()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class Authority:
    """An authority, and one certificate for all of these names."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.certificate, self._server = folder / "ca.pem", folder / "server.pem"
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        own = ("-keyout", str(folder / "ca.key"), "-out", str(self.certificate), "-subj", "/CN=authority of a test")
        self._openssl("req", "-x509", *key, *own)
        alternatives = "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)
        signed = ("-CA", str(self.certificate), "-CAkey", str(folder / "ca.key"))
        own = ("-keyout", str(folder / "server.key"), "-out", str(self._server), "-subj", "/CN=server of a test")
        leaf = ("-addext", alternatives, "-addext", "basicConstraints=critical,CA:FALSE")
        self._openssl("req", "-x509", *key, *signed, *own, *leaf)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self._server, folder / "server.key")

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class WebServer(http.server.ThreadingHTTPServer):
    """Serves the files below `root`/HOST for each Host, and git repositories below /git/. Notes each request. With
    `credentials` (NAME:PASSWORD) it asks for them."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, root: Path, port: int, context: ssl.SSLContext | None = None, credentials: str | None = None
    ) -> None:
        self.root, self.context = root, context
        self.authorization = None if credentials is None else f"Basic {b64encode(credentials.encode()).decode()}"
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        super().__init__((HOST, port), _Answer)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is no news."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Answer(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def setup(self) -> None:
        if self.server.context is not None:  # here and not at accept, where one client would hold up all others
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        self.server.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.directory = str(self.server.root / self.headers.get("Host", "").partition(":")[0])
        return True

    def do_GET(self) -> None:
        if self.server.authorization not in (None, self.headers.get("Authorization")):
            self._send(401, {"WWW-Authenticate": 'Basic realm="it"'}, b"")
        elif self.path == "/echo":
            self._echo()
        elif self.path.startswith("/git/"):
            self._git()
        elif self.path.startswith("/bytes/"):
            size = int(self.path.rpartition("/")[2])
            self._send(200, {}, bytes(size))
        else:
            super().do_GET()

    def _echo(self) -> None:
        """A WebSocket that sends back what it gets."""
        protocol = ServerProtocol()
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        received = f"{self.requestline}\r\n{head}\r\n".encode()
        while received:
            protocol.receive_data(received)
            for event in protocol.events_received():
                if isinstance(event, Request):
                    protocol.send_response(protocol.accept(event))
                elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    protocol.send_text(event.data)
            self.wfile.write(b"".join(protocol.data_to_send()))
            received = b"" if protocol.close_expected() else self.connection.recv(65_536)
        self.close_connection = True

    def do_POST(self) -> None:
        self._git()

    def _git(self) -> None:
        """git-http-backend(1), by CGI."""
        path, _, query = self.path.removeprefix("/git").partition("?")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        variables = {
            "GIT_PROJECT_ROOT": str(self.server.root / "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "somebody",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(["git", "http-backend"], env=variables, input=body, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self._send(int(fields.pop("Status", "200 OK").partition(" ")[0]), fields, content)

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _send(self, status: int, fields: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


# --- what the servers serve


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_wheel(root: Path) -> None:
    """An index on one host whose file is on another one, as on the Internet."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("it.py", 'print("answered")')
        packed.writestr("it-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: it\nVersion: 1\n")
        packed.writestr("it-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr("it-1.dist-info/RECORD", "")
    name = "it-1-py3-none-any.whl"
    write(root / "files.example.org" / name, wheel.getvalue())
    write(root / "index.example.org/simple/it/index.html", f'<a href="https://files.example.org/{name}">{name}</a>')


def make_npm_package(root: Path) -> None:
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as packed:
        for name, text in {
            "package.json": '{"name": "@its/it", "version": "1.0.0", "bin": {"it": "it.js"}}',
            "it.js": '#!/usr/bin/env node\nconsole.log("answered")\n',
        }.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size, member.mode = len(text), 0o755
            packed.addfile(member, io.BytesIO(text.encode()))
    content = package.getvalue()
    dist = {
        "tarball": "https://registry.example.org/it-1.0.0.tgz",
        "shasum": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
    }
    version = {"name": "@its/it", "version": "1.0.0", "bin": {"it": "it.js"}, "dist": dist}
    about = {"name": "@its/it", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    write(root / "registry.example.org/it-1.0.0.tgz", content)
    write(root / "registry.example.org/@its/it", json.dumps(about))  # asked for as /@its%2fit


def make_go_module(root: Path) -> None:
    version = root / "modules.example.org/it.test/a/@v"
    write(version / "v1.0.0.mod", "module it.test/a\n")
    write(version / "v1.0.0.info", '{"Version": "v1.0.0"}')
    with zipfile.ZipFile(version / "v1.0.0.zip", "w") as packed:
        packed.writestr("it.test/a@v1.0.0/answer", "answered\n")
        packed.writestr("it.test/a@v1.0.0/go.mod", "module it.test/a\n")


def make_repository(root: Path) -> None:
    """With 2 MiB that do not compress, so that a clone is more than one buffer."""
    work, bare = root / "work", root / "git/it.git"
    write(work / "answer", "answered\n")
    write(work / "large", os.urandom(2 << 20))
    me = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    for command in (
        ("init", "-q", "-b", "main", "."),
        ("add", "."),
        (*me, "commit", "-qm", "first"),
        ("clone", "-q", "--bare", ".", str(bare)),
        ("-C", str(bare), "config", "http.receivepack", "true"),
    ):
        subprocess.run(["git", *command], cwd=work, check=True, capture_output=True)


# --- databases


def installed(pattern: str) -> str:
    return str(next(iter(sorted(Path("/usr").glob(pattern)))))


@contextlib.contextmanager
def postgres() -> Iterator[None]:
    """On HOST, port 5432, with the user `me` and no password. It refuses to run as root."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are private to root
        uid = pwd.getpwnam("nobody").pw_uid  # initdb wants to know its user's name
        os.chown(folder, uid, uid)
        with _postgres(Path(folder), uid):
            yield


@contextlib.contextmanager
def _postgres(folder: Path, uid: int) -> Iterator[None]:
    who: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": (), "cwd": "/", "env": {"PATH": os.defpath}}
    data = str(folder / "data")
    initdb = [installed("lib/postgresql/*/bin/initdb"), "-D", data, "-A", "trust", "-U", "me", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, **who)
    options = ["-c", f"listen_addresses={HOST}", "-k", str(folder), "-c", "fsync=off"]
    server = [installed("lib/postgresql/*/bin/postgres"), "-D", data, *options]
    with (folder / "log").open("wb") as log, subprocess.Popen(server, stdout=log, stderr=log, **who) as running:
        try:
            wait_for_port(5432, running)
            yield
        finally:
            running.terminate()


@contextlib.contextmanager
def redis() -> Iterator[None]:
    """On HOST, port 6379."""
    command = ["redis-server", "--bind", HOST, "--save", "", "--protected-mode", "no", "--dir", "/"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        try:
            wait_for_port(6379, running)
            yield
        finally:
            running.terminate()


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        assert server.poll() is None, "the server has ended"
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, port), PATIENCE):
            return True
        return False

    host.until(answers, f"something listens on port {port}")
