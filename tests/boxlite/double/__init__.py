"""A double of `boxlite serve` 0.10.8: same wire, and boxes that are local processes in namespaces of their own.

`async with Double() as double:` gives `double.url` and `double.key`. Commands really run. The network never works:
every box sees `lo` alone, whatever its options say, unless `Settings.shares_network` gives boxes the host's. There are
no snapshots, clones, exports or SSH. What holds it to the real server are the recordings beside it, the official
client, and the published contract: `test_double_*.py`.
"""

from tests.boxlite.double.faults import Answer, Attach, Drop, Fault, Faults, Route, Stall, drip, endless
from tests.boxlite.double.http import Failure
from tests.boxlite.double.server import Double, Recorded
from tests.boxlite.double.session import Frame
from tests.boxlite.double.settings import Settings

__all__ = [
    "Answer",
    "Attach",
    "Double",
    "Drop",
    "Failure",
    "Fault",
    "Faults",
    "Frame",
    "Recorded",
    "Route",
    "Settings",
    "Stall",
    "drip",
    "endless",
]
