"""Bulkhead: one REST API with two walls, for code nobody trusts.

These are the packages and modules of `app`. Each imports only what stands below it.

The programs. They connect the rest:

``cli``             the command `bulkhead`, for clients and operators
``serve``           `bulkhead serve`: starts the supervisor, or the gateway alone
``apart``           launcher and gateway as two services that somebody else starts
``gateway``         the process without privileges: gives up root, then listens
``main``            makes the application from settings, core and API
``supervisor``      starts launcher and gateway, and ends one when the other ends

The client:

``client``          calls the API from Python; `cli` uses it

The parts of the gateway:

``api``             the routes: checks requests, calls the core, writes answers
``http_bounds``     HTTP/1.1 of uvicorn with bounds for slow and hostile clients
``ws_bounds``       WebSockets of uvicorn with bounds for frames and unread answers
``http_slices``     parses input of many pieces in slices, so that other connections get their turn
``http_upgrades``   treats an offer of another protocol as an ordinary request
``pacing``          rates, and how much input is parsed in one slice
``slow_callbacks``  logs what holds the event loop for long
``backends``        one package per runtime; each carries out what the core asks for
``profiles``        reads the operator's policy profiles
``keys``            API keys, stored as hashes
``spill``           stores on disk the output that does not fit into memory
``telemetry``       logs and metrics
``instance``        the name by which a BoxLite server knows this installation
``settings``        everything that an operator may choose
``core``            sandboxes, executions, policies, output: all decisions, without a framework and without I/O

What imports nothing else of `app`:

``launcher``        the only program with privileges: makes sandboxes. It imports the standard library and itself
``slot``            reserves uids, a run folder and control groups for one service on a host

The gateway decides and the launcher confines. The gateway never needs a privilege, and the launcher does not trust it.
A sandbox has one owner socket: when its last holder is gone, the kernel ends every process of the sandbox. When a step
of isolation fails, the request fails and names the step.

``docs/architecture.md`` has the picture; ``tests/contract/test_layering.py`` checks who imports whom, and this list.
"""

__version__ = "0.1.0"
