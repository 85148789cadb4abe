"""What this host offers and the operator wants, found out once, when the launcher starts."""

from __future__ import annotations

import os

from app.launcher.config import Config
from app.launcher.daemon import cgroup, probe
from app.launcher.daemon.loop_storage import LAYER
from app.launcher.kernel import landlock, seccomp
from app.launcher.protocol import VERSION


class Host:
    """`missing` are layers that the host lacks and that the operator did not accept as missing. No sandbox is made
    without them. `lacks_for_disks` says why no sandbox can have a disk, or is empty."""

    def __init__(self, config: Config, tree: cgroup.CgroupTree, lacks_for_disks: str) -> None:
        if not probe.knows_clone3():
            raise SystemExit("bulkhead: this kernel has no clone3 (it needs Linux 5.3), or a filter hides it")
        self._config, self._tree = config, tree
        self.layers = probe.available_layers(tree, config.uid_first)
        self._lacks_for_disks = lacks_for_disks
        if not lacks_for_disks:
            self.layers.add(LAYER)
        self.missing = probe.missing_layers(self.layers, config.accept_missing)
        self.filters = {name: seccomp.compile_filter(name, os.uname().machine) for name in seccomp.PROFILES}

    def about(self, disk_bytes: int) -> list[bytes]:
        """Lines NAME=VALUE about the host and the configuration, for receipts. `disk_bytes`: what all
        disks can hold."""
        facts = {
            "protocol": str(VERSION),
            "kernel": os.uname().release,
            "landlock_abi": str(landlock.abi()),
            "cgroup_version": str(self._tree.version),
            # Hashed there: hashlib would bring all of OpenSSL in here.
            **{f"filter_{name}": program.hex() for name, program in self.filters.items()},
            "layers": ",".join(sorted(self.layers)),
            "missing": ",".join(self.missing),
            f"lacks_{LAYER}": self._lacks_for_disks,
            "disk_bytes": str(disk_bytes),
            "accepted": ",".join(layer for layer in self._config.accept_missing if layer not in self.layers),
        }
        return [f"{name}={value}".encode() for name, value in facts.items()]
