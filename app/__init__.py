"""Bulkhead: one REST API with two walls, for code nobody trusts.

The map of the house. A request walks down this list, its output walks up:

``main``, ``cli``   wire everything; the only modules that may import anything
``serve``           which of the two below
``supervisor``      starts the privileged half and the unprivileged half, and outlives neither
``apart``           the two halves as two services, which others start
``api``             the edge: HTTP and WebSocket. Translates and delegates, decides nothing
``core``            the idea: what a sandbox, an execution, a policy, an output log is. No framework, no I/O
``backends``        the ways: one folder per runtime, each a translation of the core's contract
``launcher``        the hands: the only code with privileges. Standard library only, imports nothing else of app
``settings``        the numbers and names that an operator may choose
``spill``           output that does not fit into memory
``telemetry``       logs and metrics

Three sentences to keep. The gateway decides, the launcher confines; the gateway never needs a privilege, and
the launcher does not trust it. A sandbox has one owner socket; when its last holder is gone the kernel ends
every process of it. A step that cannot be carried out fails the request and names itself.

``docs/architecture.md`` has the picture, ``tests/contract/test_layering.py`` enforces the arrows.
"""

__version__ = "0.1.0"
