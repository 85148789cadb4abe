"""Why a boot fails: images that cannot be resolved, senseless sizes, a main command that is not there."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from tests.boxlite.double.create import Options
from tests.boxlite.double.http import Failure
from tests.boxlite.double.machine import CannotStart, Program

SMALLEST_MEMORY, LARGEST_MEMORY, LARGEST_DISK = 64, 1 << 20, 100_000
CONTAINER = "build failed: failed to create container"
EXISTS = "internal error: execution_exists: Execution already exists"  # the main command is gone, nobody noticed
NOT_READY = "engine reported an error: timed out after 30s waiting for it to become ready"
EXECUTING = f"{CONTAINER}: exec process failed with error error in executing process :"


def check_image(options: Options, missing: Container[str]) -> None:
    if options.rootfs_path is not None:
        if options.rootfs_path in missing:
            raise Failure("storage_error", f"storage error: Rootfs path does not exist: {options.rootfs_path}")
    elif options.image in missing:
        why = f"Failed to pull image '{options.image}' after trying 1 registry:\n  - {options.image}: not found"
        raise Failure("storage_error", f"storage error: {why}")


def check_sizes(options: Options) -> None:
    if options.cpus == 0 or not SMALLEST_MEMORY <= options.memory_mib <= LARGEST_MEMORY or options.disk_size_gb == 0:
        raise Failure("engine_unavailable", "engine reported an error: The VM failed to start.")
    if (options.disk_size_gb or 1) > LARGEST_DISK:
        raise Failure("internal", "internal error: Container init failed: Failed to mount rootfs disk: storage error")


def tell_size(options: Options, folder: Path) -> None:
    """What the guest's kernel tells of its machine: asked for 64 cpus it has 16, and 14 MB more memory."""
    told = folder / "run"
    told.mkdir(parents=True, exist_ok=True)
    cpus = min(options.cpus, 16)
    (told / "cpuinfo").write_text("".join(f"processor\t: {number}\n\n" for number in range(cpus)))
    (told / "meminfo").write_text(f"MemTotal:       {options.memory_mib * 1024 + 14_000} kB\n")


def executable(error: CannotStart, program: Program) -> str | None:
    """What the container runtime says about a program that is missing or not one."""
    name = program.argv[0]
    match error.kind:
        case "missing":
            return f"executable '{name}' not found in $PATH"
        case "denied":
            return f"executable '{name}' at path '\"{error.detail}\"' does not have correct permissions"
        case _:
            return None


def main_failure(error: CannotStart, program: Program, container: str) -> Failure:
    if text := executable(error, program):
        return Failure("invalid_argument", f"invalid argument: {text}")
    why = f"Failed to create container {container}: internal error: {EXECUTING} failed to unix syscall"
    if error.kind == "user":
        why = f"User '{error.detail}' not found in /run/boxlite/containers/{container}/rootfs/etc/passwd"
    text = f"Container init failed: Failed to create container: internal error: {why}"
    return Failure("internal", f"internal error: {text}")


def spawn_failure(error: CannotStart, program: Program) -> Failure:
    """The same for a command in a running box: always 500."""
    if error.kind == "ending":
        return Failure("internal", EXISTS)
    if text := executable(error, program):
        why = f"internal error: {EXECUTING} {text}"
    elif error.kind == "cwd":
        why = f"internal error: {EXECUTING} failed to unix syscall"
    else:
        why = "internal error: build failed: failed to execute workload\0"
    return Failure("internal", f"internal error: spawn_failed: {why}")
