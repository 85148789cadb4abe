"""Reading and writing the files of control groups. A path is relative to a folder that is open, `at`."""

from __future__ import annotations

import os


def read(path: str, at: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def write(path: str, at: int, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def write_if_there(path: str, at: int, value: str) -> None:
    try:
        write(path, at, value)
    except FileNotFoundError:
        return


def has(path: str, at: int) -> bool:
    try:
        os.stat(path, dir_fd=at)
    except FileNotFoundError:
        return False
    return True


def number_of(text: str) -> int:
    """Reads a number. `max` (no limit) becomes 0, as no limit is below one."""
    return 0 if text.strip() == "max" else int(text)


def field(text: str, name: str) -> int:
    """Of a flat keyed file: lines of a name and a number. 0 for a name that is not there."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def pids(path: str, at: int) -> list[int]:
    """All processes of a group. One read may end in the middle of a number, so it reads to the end. A group that is
    gone has none."""
    try:
        descriptor = os.open(path + "/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    except FileNotFoundError:
        return []
    try:
        text = b""
        while piece := os.read(descriptor, 65536):
            text += piece
    except OSError:
        return []  # ENODEV: the group was removed meanwhile
    finally:
        os.close(descriptor)
    return [int(line) for line in text.split()]


def cpus_of(text: str) -> list[int]:
    """Reads a list of processors such as `0-3,8`, cpuset(7)."""
    found: list[int] = []
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def list_of(cpus: list[int]) -> str:
    """Writes such a list; `cpus` are in order."""
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def controllers_of(folder: str) -> set[str]:
    """Those of version 2 that a group may use. None where there is no such group."""
    try:
        with open(folder + "/cgroup.controllers") as file:
            return set(file.read().split())
    except OSError:
        return set()


def folders(path: str, at: int) -> list[str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        return [entry.name for entry in os.scandir(descriptor) if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(descriptor)
