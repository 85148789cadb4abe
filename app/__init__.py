"""Bulkhead runs untrusted code in sandboxes, with one REST API for two runtimes.

These are the packages and modules of `app`. Each imports only what stands below it.

The programs:

``cli``         the command `bulkhead`, for clients and operators
``serving``     the processes of the service (supervisor, gateway, launcher), and HTTP within bounds
``main``        makes the application from settings, core and API

The client:

``client``      calls the API from Python; `cli` uses it

The parts of the gateway:

``api``         the routes: checks requests, calls the core, writes answers
``backends``    one package per runtime; each carries out what the core asks for
``egress``      the process that connects sandboxes of the network mode `proxy` with the outside: no privilege, no key
``keys``        API keys, stored as hashes
``spill``       stores on disk the output that does not fit into memory
``telemetry``   logs and metrics
``settings``    everything that an operator may choose
``sentences``   what is wrong with a value, for settings and requests
``core``        sandboxes, executions, policies, output: all decisions, without a framework and without I/O

What imports nothing else of `app`:

``privileges``  how a process gives up root for good
``log_buffer``  holds lines of the log until the answers have left
``huge_pages``  puts what a process has loaded on pages of 2 MiB
``launcher``    the only program that keeps root and takes requests: it makes sandboxes. It imports the standard library
                and itself

Four packages are sorted further, so that the path of a file tells what may be touched there:

- `launcher.daemon` runs as root, `launcher.sandbox` runs inside the clone that becomes the sandbox, `launcher.kernel`
  wraps interfaces of the kernel for both, and `launcher.protocol` is what travels between the processes.
- `api.routes` has the endpoints, `api.http` what surrounds every request, `api.schemas` what goes in and out,
  `api.openapi` the document, and `api.streams` live output.
- `serving.supervisor` starts the processes as root; `serving.gateway` has no privilege and imports nothing of it.
- `backends.process` and `backends.boxlite` know nothing of each other.

The gateway decides and the launcher confines. The gateway never needs a privilege, and the launcher does not trust it.
A sandbox has one owner socket. When its last holder is gone, the kernel ends every process of the sandbox. When a step
of isolation fails, the request fails and names the step.

``docs/architecture.md`` has the picture; ``tests/contract/test_layering.py`` checks who imports whom, and this list.
"""

__version__ = "0.1.0"
