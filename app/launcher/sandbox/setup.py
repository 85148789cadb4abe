"""What the steps of one sandbox work on."""

from __future__ import annotations

import _socket

from app.launcher.config import Config
from app.launcher.kernel.landlock import Ruleset
from app.launcher.protocol import CreatePlan
from app.launcher.sandbox.own_groups import GroupMount
from app.launcher.sandbox.own_memory import OwnMemory
from app.launcher.sandbox.trust import TrustStores


class SandboxSetup:
    """Everything that the steps of one sandbox need. It lives in the clone that becomes the worker."""

    __slots__ = (
        "channel",
        "config",
        "cpus",
        "disk_device",
        "filters",
        "group_mounts",
        "ipv6",
        "join_descriptors",
        "landlock_abi",
        "masks",
        "meminfo",
        "memory",
        "memory_group",
        "null",
        "owner",
        "plan",
        "processes_count",
        "processes_file",
        "rules",
        "trust_stores",
        "uid",
        "worker_group",
    )  # fmt: skip

    def __init__(self, config: Config, channel: _socket.socket, null: int, uid: int) -> None:
        self.config = config
        self.channel = channel  # to the launcher
        self.null = null
        self.uid = uid  # as it is called inside
        self.landlock_abi = 0
        self.filters: dict[str, bytes] = {}
        self.masks: list[tuple[str, str]] = []
        self.group_mounts: list[GroupMount] = []
        self.meminfo = -1  # /proc/meminfo, open for writing; none without a memory group
        self.trust_stores = TrustStores([], [])  # of the template
        self.rules: Ruleset | None = None  # for Landlock, those that most plans have
        # These come with the plan.
        self.plan: CreatePlan
        self.owner: _socket.socket  # to the gateway
        self.join_descriptors: list[int] = []  # into the sandbox's own control groups
        self.worker_group: list[int] = []  # into those of the workers
        self.memory_group = -1  # into the sandbox's own group that limits memory, until the plan is carried out
        self.memory: OwnMemory | None = None
        self.processes_file = self.processes_count = -1  # version 2: pids.max and pids.current
        self.cpus: list[int] = []  # to keep to; empty where a control group sees to that
        self.ipv6 = False  # every IPv6 address is the sandbox's own too, if the plan has ports
        self.disk_device = -1  # st_dev of the disk, if the plan asks for one
