"""What the launcher may do: lines of `name value`. The process that starts the launcher sends them once, never the
gateway."""

from __future__ import annotations

# The layers that an operator may give up by name, and then the receipt says so. Every other layer is always required.
OPTIONAL_LAYERS = (
    "user_namespace", "landlock", "landlock_tcp", "landlock_scopes",
    "cgroup_memory", "cgroup_pids", "cgroup_cpu", "cgroup_cpuset", "swap_limit",
)  # fmt: skip


class Config:
    """uids and gids are the host's. Sizes are in bytes. `cgroup_parent` is a path below each controller's root."""

    __slots__ = (
        "accept_missing", "cgroup_parent", "etc_paths", "gateway_gid", "gateway_uid", "hostname", "max_cpu_millis",
        "max_disk_bytes", "max_executions", "max_file_locks", "max_memory_bytes", "max_processes", "max_sandboxes",
        "max_terminals", "root_paths", "run_dir", "socket", "storage_dir", "storage_reserve_bytes", "uid_count",
        "uid_first",
    )  # fmt: skip

    def __init__(self) -> None:
        self.socket = ""
        self.run_dir = ""
        self.gateway_uid = self.gateway_gid = 0
        self.uid_first, self.uid_count = 0, 0
        self.cgroup_parent = ""
        self.hostname = "sandbox"
        self.max_sandboxes, self.max_executions = 1000, 20_000
        self.max_cpu_millis, self.max_processes = 1_000, 1024
        self.max_file_locks = 100_000
        self.max_terminals = 2048
        self.max_memory_bytes, self.max_disk_bytes = 1 << 32, 1 << 32
        self.storage_dir, self.storage_reserve_bytes = "", 0  # a path of the host; what disks leave free there
        self.root_paths: list[str] = []
        self.etc_paths: list[str] = []
        self.accept_missing: list[str] = []

    def dump(self) -> str:
        lines: list[str] = []
        for name in self.__slots__:
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            lines += [f"{name} {item}" for item in values]
        return "\n".join(lines) + "\n"


def parse(text: str) -> Config:
    """Raises ValueError, naming the line."""
    config = Config()
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if not line or name.startswith("#"):
            continue
        if name not in Config.__slots__:
            raise ValueError(f"unknown launcher setting: {line!r}")
        current = getattr(config, name)
        if isinstance(current, list):
            current.append(value)
        elif isinstance(current, int):
            if not value.isascii() or not value.isdigit():
                raise ValueError(f"not a number: {line!r}")
            setattr(config, name, int(value))
        else:
            setattr(config, name, value)
    for layer in config.accept_missing:
        if layer not in OPTIONAL_LAYERS:
            raise ValueError(f"not a layer that may be missing: {layer!r}")
    return config
