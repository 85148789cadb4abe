"""What a runtime may promise, by name."""

from __future__ import annotations

from enum import StrEnum


class Capability(StrEnum):
    """The closed list of what a runtime may promise (docs/api.md)."""

    STDIN = "stdin"
    SIGNALS = "signals"
    SIGNAL_GROUP = "signal_group"
    PTY = "pty"
    KILL_TREE = "kill_tree"
    PROMPT_EXIT = "prompt_exit"
    EXACT_OUTPUT = "exact_output"
    MERGED_OUTPUT = "merged_output"
    OOM_EVIDENCE = "oom_evidence"
    USAGE = "usage"
    LIMIT_CPUS = "limit_cpus"
    LIMIT_MEMORY = "limit_memory"
    LIMIT_DISK = "limit_disk"
    LIMIT_PROCESSES = "limit_processes"
    STORAGE_MEMORY = "storage_memory"
    STORAGE_DISK = "storage_disk"
    EXECUTION_LIMITS = "execution_limits"
    EXECUTION_RLIMITS = "execution_rlimits"
    FILESYSTEM_POLICY = "filesystem_policy"
    SYSCALL_PROFILES = "syscall_profiles"
    FILES = "files"
    IMAGES = "images"
    PAUSE = "pause"
    NETWORK_DIRECT = "network_direct"
    NETWORK_PROXY = "network_proxy"
    SECRETS = "secrets"
