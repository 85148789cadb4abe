"""Programs that know nothing of a proxy reach the hosts of their policy, and only those. Where requests are read, they
trust the sandbox's authority without an option."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.proxied.conftest import PACKAGES, Internet, Proxied
from tests.kernel.proxied.world import HOST, postgres, redis
from tests.require import PROGRAMS, require_program
from tests.service import Service

Rule = str | dict[str, Any]
ANSWER = "answered\n"
# The variables by which programs trust the authority of the tests, for connections that nobody reads.
CA = "/workspace/ca.pem"
TRUST = dict.fromkeys(
    ("CA", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT", "GIT_SSL_CAINFO", "npm_config_cafile", "NODE_EXTRA_CA_CERTS"),
    CA,
)
JAVA = """
    if [ "$CA" ]; then
        keytool -importcert -noprompt -file "$CA" -keystore trust -storepass changeit 2> log
        trust="-Djavax.net.ssl.trustStore=trust -Djavax.net.ssl.trustStorePassword=changeit"
    fi
    cat > Main.java <<'END'
    import java.net.URI;
    import java.net.http.*;
    class Main {
      public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        for (var scheme : new String[] { "http", "https" }) {
          var asked = HttpRequest.newBuilder(URI.create(scheme + "://www.example.org/answer")).build();
          var answer = client.send(asked, HttpResponse.BodyHandlers.ofString());
          if (!answer.body().equals("answered\\n"))
            throw new Exception(answer.statusCode() + answer.body());
        }
        System.out.println("answered");
        System.exit(0);
      }
    }
    END
    java $trust Main.java
"""
PYTHON = """
    python3 - <<'END'
    import urllib.request
    for scheme in ("http", "https"):
        answer = urllib.request.urlopen(f"{scheme}://www.example.org/answer", timeout=100).read()
        assert answer == b"answered\\n", answer
    print("answered")
    END
"""
BOTH: tuple[Rule, ...] = ("www.example.org:80", "www.example.org:443")
SCRIPTS: dict[str, tuple[tuple[Rule, ...], str]] = {
    "curl": (
        BOTH,
        """
        curl -sSf http://www.example.org/answer -o plain
        curl -sSf https://www.example.org/answer | cmp - plain
        curl -sSf https://www.example.org/bytes/3000000 | cmp - <(head -c 3000000 /dev/zero)
        cat plain
        """,
    ),
    "python3": (BOTH, PYTHON),
    "pip": (
        ("index.example.org:443", "files.example.org:443"),
        """
        python3 -c 'import pip' 2> /dev/null ||  # where it is not installed, Debian has it as a wheel
            export PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl)
        python3 -m pip install -q --index-url https://index.example.org/simple --no-cache-dir \\
            --disable-pip-version-check --target to it
        PYTHONPATH=to python3 -m it
        """,
    ),
    "git": (
        ("code.example.org:443",),
        """
        git clone -q https://code.example.org/git/it.git && cd it && cat answer
        head -c 2000000 /dev/urandom > new && git add . && git -c user.name=a -c user.email=a@b commit -qm second
        git push -q origin HEAD:refs/heads/$RANDOM$RANDOM
        """,
    ),
    "npm": (
        ("registry.example.org:443",),
        """
        mkdir app && cd app && echo '{}' > package.json
        npm install --registry https://registry.example.org/ --no-audit --no-fund --no-update-notifier \\
            --loglevel=error @its/it > log
        node_modules/.bin/it
        """,
    ),
    "node": (
        BOTH,
        """
        node -e '
          (async () => {
            for (const scheme of ["http", "https"]) {
              const answer = await (await fetch(`${scheme}://www.example.org/answer`)).text();
              if (answer !== "answered\\n") throw new Error(answer);
            }
            console.log("answered");
          })();
        '
        """,
    ),
    "java": (BOTH, JAVA),
    "go": (
        ("modules.example.org:443",),
        """
        export PATH=$PATH:/usr/local/go/bin GOPROXY=https://modules.example.org GONOSUMDB=* GOPATH=$PWD/go
        printf "module it.test/b\\ngo 1.18\\n" > go.mod
        go mod download it.test/a@v1.0.0
        cat go/pkg/mod/it.test/a@v1.0.0/answer
        """,
    ),
    "postgres": (
        ({"host": "db.example.org", "ports": [5432], "raw": True},),
        """
        PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
        sql() { psql -h db.example.org -U me -qtA postgres -c "$@"; }
        sql "create temp table t as select generate_series(1, 200000) as n; select count(*) from t" | grep -qx 200000
        sql "select repeat('x', 3000000)" | head -c 3000000 | tr -d x | cmp - /dev/null
        sql "select 'answered'"
        """,
    ),
    "redis-server": (
        ({"host": "cache.example.org", "ports": [6379], "raw": True},),
        """
        head -c 1000000 /dev/zero | redis-cli -h cache.example.org -x set large > log
        redis-cli -h cache.example.org strlen large | grep -qx 1000000
        redis-cli -h cache.example.org set key answered > log
        redis-cli -h cache.example.org get key
        """,
    ),
}


@pytest.fixture
def database(request: pytest.FixtureRequest, internet: Internet) -> Iterator[None]:
    """The server that the program of this test talks to, if it is no web server."""
    with ExitStack() as running:
        if request.getfixturevalue("name") == "postgres":
            running.enter_context(postgres())
        elif request.getfixturevalue("name") == "redis-server":
            running.enter_context(redis())
        yield


def answer_of(proxied: Proxied, allow: Sequence[Rule], script: str, env: Mapping[str, str]) -> None:
    """Runs a script that prints what the server has answered, in a sandbox with these rules."""
    sandbox = proxied.sandbox(*allow)
    script = "set -e -o pipefail; cd $(mktemp -d)\n" + textwrap.dedent(script)
    command = ("bash", "-c", script)
    done = proxied.service.run(sandbox, *command, env={"HOME": "/tmp", **env}, timeout_seconds=200)
    assert (done["exit"]["code"], done["stdout"], done["stderr"]) == (0, ANSWER, ""), (done, proxied.events(sandbox))
    told = proxied.some_events(sandbox)
    assert {(event["kind"], event["verdict"], event["reason"]) for event in told} <= {("connection", "allowed", None)}
    assert {event["address"] for event in told} == {HOST}


@pytest.mark.parametrize("name", SCRIPTS)
def test_program_that_knows_no_proxy_works(name: str, proxied: Proxied, request: pytest.FixtureRequest) -> None:
    if name in PROGRAMS:
        require_program(name)
    request.getfixturevalue("database")
    allow, script = SCRIPTS[name]
    answer_of(proxied, allow, script, TRUST)


def read(rule: str) -> dict[str, Any]:
    """The same rule, with TLS that ends at the egress process."""
    host, _, port = rule.rpartition(":")
    return {"host": host, "ports": [int(port)], "http": [{}]}


# They bring certificates of their own: `certifi`, or what pip has in it.
LIBRARIES = {
    "requests": "import requests; print(requests.get('https://www.example.org/answer').text, end='')",
    "httpx": "import httpx; print(httpx.get('https://www.example.org/answer').text, end='')",
    "websockets": """
        from websockets.sync.client import connect
        with connect("wss://www.example.org/echo") as connection:
            connection.send("answered")
            print(connection.recv())
    """,
}
READ: dict[str, tuple[tuple[Rule, ...], str]] = {
    **{name: script for name, script in SCRIPTS.items() if name not in ("postgres", "redis-server")},
    **{
        name: (BOTH, f"PYTHONPATH=$PACKAGES python3 - <<'END'\n{textwrap.dedent(text)}\nEND\n")
        for name, text in LIBRARIES.items()
    },
    "wget": (BOTH, "wget -qO- https://www.example.org/answer"),
    "new pip": (SCRIPTS["pip"][0], f"export PYTHONPATH=$PACKAGES\n{textwrap.dedent(SCRIPTS['pip'][1])}"),
}


@pytest.mark.parametrize("name", READ)
def test_program_whose_requests_are_read_works_without_an_option(name: str, proxied: Proxied) -> None:
    if name in PROGRAMS:
        require_program(name)
    allow, script = READ[name]
    answer_of(proxied, [read(str(rule)) for rule in allow], script, {"PACKAGES": str(PACKAGES)})


ONLY_READING = [{"methods": ["GET"]}, {"methods": ["POST"], "paths": ["/git/it.git/git-upload-pack"]}]


def test_repository_that_may_only_be_read_cannot_be_pushed_to(proxied: Proxied, internet: Internet) -> None:
    sandbox = proxied.sandbox({"host": "code.example.org", "ports": [443], "http": ONLY_READING})
    script = """
        git clone -q https://code.example.org/git/it.git it && cd it && cat answer
        git -c user.name=a -c user.email=a@b commit -q --allow-empty -m second
        git push -q origin HEAD:refs/heads/not-permitted
    """
    before = len(internet.tls.requests)
    done = proxied.service.run(sandbox, "sh", "-c", f"cd /tmp; {script}", env={"HOME": "/tmp"}, timeout_seconds=200)
    assert done["stdout"] == ANSWER
    assert done["exit"]["code"] != 0
    assert "403" in done["stderr"]
    assert [(event["kind"], event["reason"]) for event in proxied.events(sandbox) if event["reason"]] == [
        ("request", "http_path")
    ]
    asked = [path for method, path, _ in internet.tls.requests[before:] if method == "POST"]
    assert asked == ["/git/it.git/git-upload-pack"] * len(asked), "the other request did not reach the server"


def test_request_that_no_rule_permits_gets_a_problem_and_the_connection_goes_on(
    proxied: Proxied, internet: Internet
) -> None:
    rule = {"host": "www.example.org", "ports": [443], "http": [{"methods": ["GET"], "paths": ["/answer"]}]}
    sandbox = proxied.sandbox(rule)
    told = "-sS -w '%{http_code} %{content_type} %{num_connects}\\n' -o /dev/null https://www.example.org"
    script = f"curl {told}/answer --next {told}/other --next -X DELETE {told}/answer --next {told}/answer"
    before = len(internet.tls.requests)
    lines = proxied.service.run(sandbox, "sh", "-c", script)["stdout"].splitlines()
    assert [line.split() for line in lines] == [
        ["200", "application/octet-stream", "1"],
        ["403", "application/problem+json", "0"],
        ["403", "application/problem+json", "0"],
        ["200", "application/octet-stream", "0"],
    ]
    assert [path for _, path, _ in internet.tls.requests[before:]] == ["/answer"] * 2
    reasons = sorted(event["reason"] for event in proxied.events(sandbox) if event["kind"] == "request")
    assert reasons == ["http_method", "http_path"]


NAGLE = """
import socket, ssl
connection = socket.create_connection(("www.example.org", 443))
with ssl.create_default_context().wrap_socket(connection, server_hostname="www.example.org") as https:
    https.sendall(b"GET /answer HTTP/1.1\\r\\nHost: www.example.org\\r\\nConnection: close\\r\\n\\r\\n")
    while https.recv(4096):
        pass
"""


def delayed_acknowledgements(pid: int) -> int:
    """Of the network namespace of a process, so far."""
    names, numbers = [
        line.split() for line in Path(f"/proc/{pid}/net/netstat").read_text().splitlines() if line.startswith("TcpExt:")
    ]
    return int(numbers[names.index("DelayedACKs")])


def test_program_without_tcp_nodelay_need_not_wait_before_its_request(proxied: Proxied) -> None:
    """Its request waits until its last message of the handshake is acknowledged: after 40 ms, if nobody hurries. On a
    busy host the kernel may be first now and then, else it is first each time."""
    sandbox = proxied.sandbox(read("www.example.org:443"))
    worker = host.worker_of(proxied.service, sandbox)

    def is_acknowledged_at_once() -> bool:
        before = delayed_acknowledgements(worker)
        assert proxied.service.run(sandbox, "python3", "-c", NAGLE)["exit"]["code"] == 0
        return delayed_acknowledgements(worker) == before

    assert any(is_acknowledged_at_once() for _ in range(60))


def test_next_egress_process_signs_with_the_same_authority(service: Service, proxied: Proxied) -> None:
    sandbox = proxied.sandbox(read("www.example.org:443"))
    ask = ("curl", "-sS", "https://www.example.org/answer")
    assert service.run(sandbox, *ask)["stdout"] == ANSWER
    before = service.children()["egress"]
    os.kill(before, signal.SIGKILL)
    host.until(lambda: service.children().get("egress", before) != before, "another one is started")
    # The C library gives up a name after a few seconds (6). The next egress process may take longer to start.
    again = 'while "$@" 2> error; [ $? = 6 ]; do sleep 0.1; done; cat error >&2'
    done = service.run(sandbox, "sh", "-c", again, "sh", *ask)
    assert (done["stdout"], done["stderr"]) == (ANSWER, "")


# What a key of the curve P-256 begins with as PEM (RFC 5958), before what is its own.
KEY = b"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg"


def test_key_of_the_authority_is_in_no_process_but_the_gateway_and_the_egress_process(
    service: Service, proxied: Proxied
) -> None:
    sandbox = proxied.sandbox(read("www.example.org:443"))
    assert service.run(sandbox, "curl", "-sS", "https://www.example.org/answer")["stdout"] == ANSWER
    processes = {**service.children(), "worker": host.worker_of(service, sandbox)}
    assert {name: host.has_in_memory(pid, KEY) for name, pid in processes.items()} == {
        "launcher": False, "worker": False, "gateway": True, "egress": True
    }  # fmt: skip
