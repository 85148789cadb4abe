"""What a socket sent does not come back to wait in its error queue, whose memory the kernel charges to nobody."""

from __future__ import annotations

import subprocess
import sys

from tests.require import require
from tests.service import Service

# SO_TIMESTAMPING as a control message, with SOF_TIMESTAMPING_TX_SOFTWARE: no filter sees it.
STAMP = """
import socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    for _ in range(3):
        udp.sendmsg([b"x" * 60000], [(socket.SOL_SOCKET, 37, struct.pack("I", 2))], 0, ("127.0.0.1", 9))
    queued = 0
    try:
        while udp.recvmsg(65536, 1024, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT):
            queued += 1
    except BlockingIOError:
        print(queued)
"""


def run_outside(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_datagrams_do_not_come_back_with_a_time_stamp(service: Service, sandbox: str) -> None:
    own = run_outside("unshare", "-n", "cat", "/proc/sys/net/core/tstamp_allow_data")
    require("time-stamps", own.returncode == 0, "this kernel has one setting for all network namespaces")
    done = service.run(sandbox, "python3", "-c", STAMP)
    assert (done["stdout"], done["stderr"]) == ("0\n", "")
    assert run_outside(sys.executable, "-c", STAMP).stdout == "3\n"  # the control
