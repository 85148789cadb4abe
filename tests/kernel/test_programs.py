"""What real programs ask for works in a sandbox as it is made by default: unpackers, installers, version control,
databases and servers on Unix sockets. What talks over TCP and UDP works in the profile `loopback`."""

from __future__ import annotations

import os
import struct
import tempfile
import textwrap
from collections.abc import Iterator
from errno import EOPNOTSUPP
from pathlib import Path

import pytest

from tests.require import PROGRAMS, require, require_program
from tests.service import Service

TREE = """
mkdir -p from/folder; echo text > from/file; chmod 640 from/file; touch -d @1000000000 from/file
ln from/file from/folder/hard; ln -s file from/soft
"""
WHEEL = """
import zipfile
with zipfile.ZipFile("it-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("it.py", "print(\\"installed\\")")
    wheel.writestr("it-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: it\\nVersion: 1\\n")
    wheel.writestr("it-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("it-1.dist-info/RECORD", "")
"""
SCRIPTS = {  # what each prints, and its script
    "cp": ("1000000000 640\n", f"{TREE} cp -a from to; cp -a /etc/passwd to; stat -c '%Y %a' to/file"),
    "tar": ("text\n", f"{TREE} tar --xattrs -cf t.tar from; mkdir to; tar --xattrs -xpf t.tar -C to; cat to/from/soft"),
    "install": ("755\n", "install -m 755 /usr/bin/true here; ./here; stat -c %a here"),
    "mv": ("text\n", f"{TREE} mv from /dev/shm/to; cat /dev/shm/to/folder/hard"),
    "git": (
        "first\n",
        """
        git init -q . && echo text > file && git add . && git -c user.name=a -c user.email=a@b commit -qm first
        git clone -q . copy && cd copy && git gc -q && git fsck --no-progress && git log --format=%s
        """,
    ),
    "npm": (
        "installed\n",
        """
        mkdir package && echo '{"name": "it", "version": "1.0.0", "bin": "it.js"}' > package/package.json
        printf '#!/usr/bin/env node\\nconsole.log("installed")\\n' > package/it.js
        tar -czf it.tgz package && mkdir app && cd app && echo '{}' > package.json
        npm install --offline --no-audit --no-fund --no-update-notifier --loglevel=error ../it.tgz > /dev/null
        node_modules/.bin/it
        """,
    ),
    "pip": (
        "installed\n",
        f"""
        python3 -c 'import pip' 2> /dev/null ||  # where it is not installed, Debian has it as a wheel
            export PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl)
        python3 -c '{WHEEL}'
        python3 -m pip install -q --no-index --disable-pip-version-check --target to ./it-1-py3-none-any.whl
        PYTHONPATH=to python3 -m it
        """,
    ),
    "nginx": (
        "answered\n",
        """
        cat > nginx.conf <<END
        daemon off; pid $PWD/pid; error_log stderr; worker_processes 2;
        events { worker_connections 64; }
        http {
          access_log off;
          client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
          server { listen unix:$PWD/socket; location / { return 200 "answered\\n"; } }
        }
        END
        nginx -p $PWD -c nginx.conf &
        curl -s --retry 50 --retry-all-errors --retry-delay 0 --unix-socket socket http://here/
        kill -QUIT $!; wait $!
        """,
    ),
    "redis-server": (
        "answered\n",
        """
        redis-server --port 0 --unixsocket $PWD/socket --save '' --appendonly yes --appendfsync always > log &
        until redis-cli -s socket set key answered > log 2>&1; do sleep 0.1; done
        redis-cli -s socket get key
        redis-cli -s socket bgsave > log
        redis-cli -s socket shutdown; wait $!
        """,
    ),
    "postgres": (
        "answered\n",
        """
        PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
        initdb -D data -A trust -U me > log
        postgres -D data -k $PWD -c listen_addresses= > log 2>&1 &
        sql() { psql -h $PWD -U me -qtA postgres -c "$@"; }
        until sql "create table t as select 'answered' as it" 2> log; do sleep 0.1; done
        sql "begin; select it from t for update; commit"; sql checkpoint
        pg_ctl -D data -m fast stop > log
        """,
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_program_works(name: str, service: Service, sandbox: str) -> None:
    if name in PROGRAMS:
        require_program(name)
    printed, script = SCRIPTS[name]
    script = "set -e; cd $(mktemp -d)\n" + textwrap.dedent(script)
    done = service.run(sandbox, "bash", "-c", script, env={"HOME": "/tmp"}, timeout_seconds=200)
    assert (done["exit"]["code"], done["stdout"], done["stderr"]) == (0, printed, ""), done


# Version 2: the owner may write; uid 1234, the group, the mask and others read, acl(5).
ENTRIES = ((1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 4, -1))
ACCESS_LIST = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in ENTRIES)
NOT_SUPPORTED = "Operation not supported\n"


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str, str]]:
    """A service whose sandboxes see a file of the host that has an ACL: with it a sandbox, and the file's path."""
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    with tempfile.TemporaryDirectory(dir="/opt") as folder:  # /tmp and /var/tmp are the sandbox's own
        file = Path(folder, "file")
        file.write_text("text\n")
        file.chmod(0o644)
        Path(folder).chmod(0o755)
        try:
            os.setxattr(file, "system.posix_acl_access", ACCESS_LIST)
        except OSError as error:
            require("access-lists", error.errno != EOPNOTSUPP, "the file system of /opt has none")
            raise
        with Service(tmp_path_factory.mktemp("listed"), {"BULKHEAD_PROCESS__ROOT_PATHS": folder}) as service:
            yield service, service.create(), str(file)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("cp", 0, ""),
        ("install -m 644", 0, ""),
        ("cp -p", 1, f"cp: preserving permissions for 'copy': {NOT_SUPPORTED}"),
        ("cp -a", 1, f"cp: preserving permissions for 'copy': {NOT_SUPPORTED}"),
    ],
)
def test_copy_of_a_file_with_an_access_list_has_its_content_and_mode(
    listed: tuple[Service, str, str], command: str, code: int, said: str
) -> None:
    """Without its ACL: a program that was told to keep it says so."""
    service, sandbox, file = listed
    done = service.run(sandbox, *command.split(), file, "copy", env={"LC_ALL": "C"})
    assert (done["exit"]["code"], done["stderr"]) == (code, said)
    shown = service.run(sandbox, "sh", "-c", "cat copy; stat -c %a copy; ls -l copy | cut -c 11; rm -f copy")
    assert shown["stdout"] == "text\n644\n \n"


def test_archive_of_a_file_with_an_access_list_is_unpacked_without_it(listed: tuple[Service, str, str]) -> None:
    service, sandbox, file = listed
    pack = f"tar --acls -C {Path(file).parent} -cf t.tar file; tar --acls -xpf t.tar; echo $?; cat file"
    done = service.run(sandbox, "sh", "-c", pack, env={"LC_ALL": "C"})
    assert done["stdout"] == "0\ntext\n"
    assert done["stderr"] == f"tar: acl_set_file_at: Cannot set POSIX ACLs for file 'file': {NOT_SUPPORTED}"


ANSWER = "answered\n"
SERVERS = {  # what talks to itself over TCP and UDP, and says so when all was answered
    "python3": """
        python3 - <<'END'
        import asyncio, http.server, socket, threading, urllib.request
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
            server.RequestHandlerClass.log_message = lambda *_: None
            threading.Thread(target=server.serve_forever, daemon=True).start()
            assert urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=100).status == 200
            server.shutdown()
        async def datagrams():
            loop, got = asyncio.get_running_loop(), asyncio.Event()
            class Take(asyncio.DatagramProtocol):
                def datagram_received(self, data, sender):
                    got.set()
            address, options = ("127.0.0.1", 0), {"reuse_port": True, "allow_broadcast": True}
            transport, _ = await loop.create_datagram_endpoint(Take, address, **options)
            sender, _ = await loop.create_datagram_endpoint(Take, remote_addr=transport.get_extra_info("sockname"))
            sender.sendto(b"x")
            await asyncio.wait_for(got.wait(), 100)
        asyncio.run(datagrams())
        assert socket.if_nameindex() == [(1, "lo")]
        print("answered")
        END
    """,
    "curl": """
        python3 -m http.server --bind 127.0.0.1 8080 > /dev/null 2>&1 &
        curl --retry 50 --retry-connrefused --retry-delay 0 -s --keepalive-time 9 --tcp-nodelay --tcp-fastopen \
            --interface lo -o /dev/null -w 'answered\\n' http://localhost:8080/
        kill $!
    """,
    "nginx": """
        cat > nginx.conf <<END
        daemon off; pid $PWD/pid; error_log stderr; worker_processes 2;
        events { worker_connections 64; }
        http {
          access_log off; sendfile on; tcp_nopush on;
          client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
          server { listen 127.0.0.1:8080 deferred so_keepalive=9:9:9; location / { root $PWD; } }
          server { listen 127.0.0.1:8081; location / { proxy_pass http://127.0.0.1:8080; } }
        }
        END
        echo answered > file
        nginx -p $PWD -c nginx.conf &
        curl -s --retry 50 --retry-connrefused --retry-delay 0 http://127.0.0.1:8081/file
        kill -QUIT $!; wait $!
    """,
    "redis-server": """
        redis-server --bind 127.0.0.1 --save '' > log &
        until redis-cli set key answered > log 2>&1; do sleep 0.1; done
        redis-cli get key
        redis-cli shutdown nosave; wait $!
    """,
    "go": """
        mkdir -p proxy/it.test/a/@v app
        printf "module it.test/b\\ngo 1.18\\n" > app/go.mod
        python3 - <<'END'
        import zipfile
        version = "proxy/it.test/a/@v/v1.0.0"
        open(f"{version}.mod", "w").write("module it.test/a\\n")
        open(f"{version}.info", "w").write('{"Version": "v1.0.0"}')
        with zipfile.ZipFile(f"{version}.zip", "w") as packed:
            packed.writestr("it.test/a@v1.0.0/answer", "answered\\n")
            packed.writestr("it.test/a@v1.0.0/go.mod", "module it.test/a\\n")
        END
        python3 -m http.server --bind 127.0.0.1 --directory proxy 8080 > /dev/null 2>&1 &
        until curl -s -o /dev/null http://127.0.0.1:8080/; do sleep 0.1; done
        cd app
        export PATH=$PATH:/usr/local/go/bin GOPROXY=http://127.0.0.1:8080 GONOSUMDB=* GOPATH=$PWD/go
        go mod download it.test/a@v1.0.0
        cat go/pkg/mod/it.test/a@v1.0.0/answer
        kill $!
    """,
    "node": """
        node - <<'END'
        const http = require("http"), net = require("net"), dgram = require("dgram"), http2 = require("http2");
        const udp = dgram.createSocket({ type: "udp4", reuseAddr: true });
        const server = http.createServer((_, answer) => answer.end("x")).listen(0, "127.0.0.1", async () => {
          const port = server.address().port;
          await (await fetch(`http://127.0.0.1:${port}/`)).text();
          const socket = net.connect(port, "127.0.0.1", () => {
            socket.setNoDelay(true).setKeepAlive(true, 1000).destroy();
            udp.bind(0, "127.0.0.1", () => {
              udp.setBroadcast(true); udp.setTTL(3); udp.setMulticastTTL(3); udp.setMulticastLoopback(true);
              udp.on("message", () => { console.log("answered"); process.exit(); });
              udp.send("x", udp.address().port, "127.0.0.1");
            });
          });
        });
        END
    """,
    "java": """
        cat > Main.java <<'END'
        import com.sun.net.httpserver.HttpServer;
        import java.net.*;
        import java.net.http.*;
        import java.nio.channels.*;
        import java.nio.file.*;
        import static java.nio.file.StandardOpenOption.*;
        class Main {
          public static void main(String[] arguments) throws Exception {
            var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
            server.createContext("/", e -> { e.sendResponseHeaders(200, -1); e.close(); });
            server.start();
            var uri = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/");
            var asked = HttpRequest.newBuilder(uri).build();
            var answer = HttpClient.newHttpClient().send(asked, HttpResponse.BodyHandlers.ofString());
            server.stop(0);
            try (var listening = new ServerSocket(0); var socket = new Socket("127.0.0.1", listening.getLocalPort())) {
              socket.setTcpNoDelay(true); socket.setKeepAlive(true); socket.setSoLinger(true, 1);
              socket.setTrafficClass(8); socket.setReceiveBufferSize(8192); socket.setOOBInline(true);
            }
            try (var datagrams = new MulticastSocket(0); var channel = DatagramChannel.open()) {
              datagrams.setTimeToLive(2);
            }
            try (var file = FileChannel.open(Path.of("f"), CREATE, READ, WRITE)) {
              file.lock().release();
              file.map(FileChannel.MapMode.READ_WRITE, 0, 4096).force();
              file.force(true);
            }
            if (NetworkInterface.getByName("lo").getMTU() > 0 && answer.statusCode() == 200)
              System.out.println("answered");
            System.exit(0);
          }
        }
        END
        java Main.java
    """,
}


@pytest.mark.parametrize("name", SERVERS)
def test_server_works_in_the_profile_loopback(name: str, service: Service) -> None:
    if name in PROGRAMS:
        require_program(name)
    sandbox = service.create(policy={"profile": "loopback"})
    script = "set -e; cd $(mktemp -d)\n" + textwrap.dedent(SERVERS[name])
    done = service.run(sandbox, "bash", "-c", script, env={"HOME": "/tmp"}, timeout_seconds=200)
    service.call("DELETE", f"/sandboxes/{sandbox}")
    assert (done["exit"]["code"], done["stdout"], done["stderr"]) == (0, ANSWER, ""), done
