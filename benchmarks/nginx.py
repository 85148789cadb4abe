"""nginx in the place of the egress process: what a proxy written in C costs the same client and server."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As the egress process does it: a name is read from a ClientHello and compared, or TLS ends and begins anew for each
# connection with a host that must prove its name. nginx asks no name server here, which is in its favour.
_CONFIGURATION = """
load_module {modules}/ngx_stream_module.so;
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
stream {{
    map $ssl_preread_server_name $permitted {{ {name} {server}:443; }}
    server {{ listen {own}:7000; proxy_pass {server}:7000; }}
    server {{ listen {own}:443; ssl_preread on; proxy_pass $permitted; }}
}}
http {{
    access_log off;
    server {{
        listen {own}:8443 ssl; ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
        ssl_session_tickets off; ssl_session_cache off;
        location / {{
            proxy_pass https://{server}:8443; proxy_http_version 1.1; proxy_set_header Host $http_host;
            proxy_buffering off; proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_session_reuse off;
            proxy_ssl_verify on; proxy_ssl_trusted_certificate {folder}/ca.pem;
            proxy_ssl_name {name}; proxy_ssl_server_name on;
        }}
    }}
}}
"""


@contextmanager
def nginx(modules: Path, folder: Path, name: str, own: str, server: str) -> Iterator[None]:
    """Listens at the address `own`, and passes on to `server`, whose name is `name`. `folder` has the certificates,
    `modules` those of Debian's package `libnginx-mod-stream`."""
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(modules=modules, folder=folder, name=name, own=own, server=server))
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(configuration)]) as started:
        try:
            while not _listens(own):
                assert started.poll() is None, (folder / "nginx.log").read_text()
                time.sleep(0.05)
            yield
        finally:
            started.terminate()


def _listens(own: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((own, 8443)) == 0
