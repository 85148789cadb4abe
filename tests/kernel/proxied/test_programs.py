"""Programs that know nothing of a proxy reach the hosts of their policy, and only those."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.kernel.proxied.conftest import Internet, Proxied
from tests.kernel.proxied.world import HOST, postgres, redis
from tests.require import PROGRAMS, require_program

Rule = str | dict[str, Any]
ANSWER = "answered\n"
JAVA = """
    keytool -importcert -noprompt -file /workspace/ca.pem -keystore trust -storepass changeit 2> log
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
    java -Djavax.net.ssl.trustStore=trust -Djavax.net.ssl.trustStorePassword=changeit Main.java
"""
PYTHON = """
    python3 - <<'END'
    import ssl, urllib.request
    context = ssl.create_default_context(cafile="/workspace/ca.pem")
    for scheme in ("http", "https"):
        answer = urllib.request.urlopen(f"{scheme}://www.example.org/answer", timeout=20, context=context).read()
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
        curl -sSf --cacert /workspace/ca.pem https://www.example.org/answer | cmp - plain
        curl -sSf --cacert /workspace/ca.pem https://www.example.org/bytes/3000000 | cmp - <(head -c 3000000 /dev/zero)
        cat plain
        """,
    ),
    "python3": (BOTH, PYTHON),
    "pip": (
        ("index.example.org:443", "files.example.org:443"),
        """
        python3 -c 'import pip' 2> /dev/null ||  # where it is not installed, Debian has it as a wheel
            export PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl)
        export PIP_CERT=/workspace/ca.pem
        python3 -m pip install -q --index-url https://index.example.org/simple --no-cache-dir \\
            --disable-pip-version-check --target to it
        PYTHONPATH=to python3 -m it
        """,
    ),
    "git": (
        ("code.example.org:443",),
        """
        export GIT_SSL_CAINFO=/workspace/ca.pem
        git clone -q https://code.example.org/git/it.git && cd it && cat answer
        head -c 2000000 /dev/urandom > new && git add . && git -c user.name=a -c user.email=a@b commit -qm second
        git push -q origin HEAD:refs/heads/$RANDOM$RANDOM
        """,
    ),
    "npm": (
        ("registry.example.org:443",),
        """
        mkdir app && cd app && echo '{}' > package.json
        export npm_config_cafile=/workspace/ca.pem
        npm install --registry https://registry.example.org/ --no-audit --no-fund --no-update-notifier \\
            --loglevel=error @its/it > log
        node_modules/.bin/it
        """,
    ),
    "node": (
        BOTH,
        """
        export NODE_EXTRA_CA_CERTS=/workspace/ca.pem
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
        export SSL_CERT_FILE=/workspace/ca.pem
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


@pytest.mark.parametrize("name", SCRIPTS)
def test_program_that_knows_no_proxy_works(name: str, proxied: Proxied, request: pytest.FixtureRequest) -> None:
    if name in PROGRAMS:
        require_program(name)
    request.getfixturevalue("database")
    allow, script = SCRIPTS[name]
    sandbox = proxied.sandbox(*allow)
    script = "set -e -o pipefail; cd $(mktemp -d)\n" + textwrap.dedent(script)
    done = proxied.service.run(sandbox, "bash", "-c", script, wait=30, env={"HOME": "/tmp"}, timeout_seconds=20)
    assert (done["exit"]["code"], done["stdout"], done["stderr"]) == (0, ANSWER, ""), (done, proxied.events(sandbox))
    told = proxied.events(sandbox)
    assert {(event["kind"], event["verdict"], event["reason"]) for event in told} <= {("connection", "allowed", None)}
    assert {event["address"] for event in told} == {HOST}
