"""Runtime `boxlite`: microVMs through a BoxLite server, spoken to over REST and WebSocket.

::

    backend ── fit, create ──▶ sandbox ── execute ──▶ execution ──▶ attach (WebSocket)
       │                          │                       │            └─ replay: what is new of a repeated stream
       └─ health check         ───┴──────── server ───────┘
                                              ├─ client (the one place where its errors become ours)
                                              └─ connection pool ── connection (HTTP/1.1), websocket

Facts about BoxLite in this folder were seen on a running server 0.10.8 or read in its source. In this folder,
and only here, a sandbox on the server's side is called a box.
"""

RUNTIME = "boxlite"
