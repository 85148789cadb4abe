"""Checks what the requests of the gateway say, and builds refusals and answers. The gateway is not trusted."""

from __future__ import annotations

import errno

from app.launcher.config import Config
from app.launcher.daemon.connection import Connection
from app.launcher.protocol import MOST_PORTS, OK, REPLY, RESOLVER_ADDRESS, CreatePlan, ExecutionPlan, Writer
from app.launcher.sandbox.lockdown import NOFILE_HARD
from app.launcher.sandbox.trust import der_of

MOST_CPU_NS = (1 << 63) - 1
# The floors of an execution, those of the API. The worker is in the group while it starts a command by vfork: with much
# less memory the kernel would kill it.
LEAST_CPU_NS = 10_000_000
LEAST_MEMORY, LEAST_STACK, LEAST_FILE = 16 << 20, 1 << 20, 1 << 20  # bytes
LEAST_OPEN_FILES = 8


class Refusal(Exception):
    """A request that is not carried out: the step (or `plan`), an errno, a sentence."""

    def __init__(self, step: str, number: int, detail: str) -> None:
        self.step, self.errno, self.detail = step, number, detail
        super().__init__(detail)


def reply(request: int, status: int = OK) -> Writer:
    return Writer(REPLY).u32(request).u8(status)


def answer(connection: Connection | None, record: Writer) -> None:
    """Builds an answer to a gateway, which may be gone by now."""
    if connection is not None:
        connection.send(bytes(record.data))


def check_plan(plan: CreatePlan, config: Config, filters: dict[str, bytes]) -> None:
    """Raises Refusal for a plan that the configuration does not allow, whoever sent it."""
    if not is_name(plan.sandbox_id):
        raise Refusal("plan", errno.EINVAL, "not a sandbox id")
    if plan.template != "host" or plan.filter_name not in filters:
        raise Refusal("plan", errno.ENOENT, "no such template or filter")
    for name, value, most in (
        ("cpu", plan.cpu_millis, config.max_cpu_millis),
        ("memory", plan.memory_bytes, config.max_memory_bytes),
        ("disk", plan.disk_bytes, config.max_disk_bytes),
        ("processes", plan.processes, config.max_processes),
    ):
        if not 0 < value <= most:
            raise Refusal("plan", errno.ERANGE, f"{name} is {value}, the ceiling {most}")
    for path in plan.read_only + plan.read_write:
        if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise Refusal("plan", errno.EINVAL, "not a clean path")
    check_ports(plan.ports)
    check_authority(plan.authority)


def check_ports(ports: list[int]) -> None:
    """Raises Refusal for too many ports, and for those that are no TCP port, the resolver's, or not rising."""
    if len(ports) > MOST_PORTS:
        raise Refusal("plan", errno.ERANGE, f"there are {len(ports)} ports, the ceiling is {MOST_PORTS}")
    if ports != sorted(set(ports)):
        raise Refusal("plan", errno.EINVAL, "the ports are not distinct and rising")
    for port in ports:
        if not 1 <= port <= 65_535 or port == RESOLVER_ADDRESS[1]:
            raise Refusal("plan", errno.ERANGE, f"port {port} cannot be listed")


def check_authority(certificate: bytes) -> None:
    """Raises Refusal for what is there and is not one certificate in PEM."""
    try:
        if certificate:
            der_of(certificate)
    except ValueError as error:
        raise Refusal("plan", errno.EINVAL, f"the authority is {error}") from None


def check_execution(limits: ExecutionPlan, plan: CreatePlan) -> None:
    """Raises Refusal for limits of an execution that are above those of its sandbox or below the floors. 0 is none."""
    for name, value, least, most in (
        ("memory", limits.memory_bytes, LEAST_MEMORY, plan.memory_bytes),
        ("stack", limits.stack_bytes, LEAST_STACK, plan.memory_bytes),
        ("open files", limits.open_files, LEAST_OPEN_FILES, NOFILE_HARD),
        ("file", limits.file_bytes, LEAST_FILE, plan.disk_bytes),
        ("processor time", limits.cpu_ns, LEAST_CPU_NS, MOST_CPU_NS),
    ):
        if value and not least <= value <= most:
            raise Refusal("plan", errno.ERANGE, f"{name} is {value}, the floor {least}, the ceiling {most}")


def is_name(text: str) -> bool:
    """Whether an id can be the name of a folder under the control groups."""
    plain = all(c.isascii() and (c.isalnum() or c in "_-") for c in text)
    return plain and 0 < len(text) <= 63 and text[0] not in "-_" and text == text.lower()
