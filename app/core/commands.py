"""Checks a command before anything is started. Every refusal names its field."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from sys import getsizeof

from app.core.backend import CommandLimits, RuntimeInfo
from app.core.capabilities import Capability
from app.core.errors import CapabilityMissing, FieldError, InvalidRequest
from app.core.http_rules import HttpRule
from app.core.models import Command, IdleCounts, SandboxSpec, Stderr, Stdin
from app.core.network_rules import NetworkRule
from app.core.text import byte_length

SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    5: "SIGTRAP",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    10: "SIGUSR1",
    11: "SIGSEGV",
    12: "SIGUSR2",
    13: "SIGPIPE",
    14: "SIGALRM",
    15: "SIGTERM",
    16: "SIGSTKFLT",
    17: "SIGCHLD",
    18: "SIGCONT",
    19: "SIGSTOP",
    20: "SIGTSTP",
    21: "SIGTTIN",
    22: "SIGTTOU",
    23: "SIGURG",
    24: "SIGXCPU",
    25: "SIGXFSZ",
    26: "SIGVTALRM",
    27: "SIGPROF",
    28: "SIGWINCH",
    29: "SIGIO",
    30: "SIGPWR",
    31: "SIGSYS",
}  # fmt: skip - signal(7), x86 and arm
NUMBERS = {name: number for number, name in SIGNALS.items()}
WRONG_NAMED = 32  # of a command with 65,536 wrong arguments nobody wants to read all
_VARIABLE = re.compile(r"[^=\0]+")


def signal_number(name: str) -> int | None:
    """SIGINT or INT -> 2; None when there is no such signal."""
    name = name.upper()
    return NUMBERS.get(name if name.startswith("SIG") else f"SIG{name}")


def number_of_signal(name: str) -> int:
    """The number of the signal that a request names. Raises InvalidRequest."""
    number = signal_number(name)
    if number is None:
        raise InvalidRequest.at("/signal", "is not the name of a signal, such as SIGINT")
    return number


_SHELL = {"alias", "cd", "eval", "exec", "exit", "export", "set", "ulimit", "umask", "unset"}


def hint_for(program: str, refusal: int) -> str:
    """A hint for a program that could not be started. `refusal` is the errno of execve(2). It says only what is always
    true, as it does not look into the sandbox."""
    if " " in program.strip():  # many have put a whole line into the first argument
        return '; a command is a list with one item for each argument, and a line for a shell is ["sh", "-c", "…"]'
    match refusal:
        case errno.ENOENT:
            return _hint_for_missing(program)
        case errno.EACCES:
            return "; a file needs the mode 0755 to be executed, or its interpreter before it, as in: python3 ./main.py"
        case errno.ENOEXEC:
            return (
                "; it is not a program for this machine, and its first line does not begin with #!; "
                "a script can be given to its interpreter, as in: sh ./script"
            )
    return ""


def _hint_for_missing(program: str) -> str:
    if "/" in program:
        return "; if the file exists, the interpreter in its first line (#!) or the loader of the program does not"
    if program in _SHELL:
        return f"; it is a command of the shell: run sh -c '{program} …'"
    return f"; it was searched in PATH; for a file in the working directory write ./{program}" if "." in program else ""


def signal_name(number: int) -> str:
    return SIGNALS.get(number, f"SIGRTMIN+{number - 34}" if number >= 34 else f"SIG{number}")


EXECUTION_BYTES, SANDBOX_BYTES = 10 * 1024, 32 * 1024  # of a record beside its texts: objects, exit, labels; measured
RULE_BYTES, PORT_BYTES = 600, 64  # of a network rule, in the policy and in the receipt; measured
HTTP_BYTES, PATTERN_BYTES = 400, 24  # of one of its `http`, and of a method or path beside its object; likewise
SECRET_BYTES, HOST_BYTES = 384, 56  # of a secret and of each of its hosts, beside their texts; measured


def environment_bytes(env: Mapping[str, str]) -> int:
    """The size of an environment for execve(2): each string has its = or NUL and a pointer."""
    return sum(len(name.encode()) + len(value.encode()) + 10 for name, value in env.items())


def command_bytes(command: Command) -> int:
    """The bytes that the service keeps in memory for a command. Its environment is dropped at its end."""
    return EXECUTION_BYTES + sum(len(argument.encode()) + 9 for argument in command.argv)


def spec_bytes(spec: SandboxSpec) -> int:
    files, network = spec.policy.filesystem, spec.policy.network
    texts = sum(map(len, (*files.read_only, *files.read_write, *network.allow)))
    texts += sum(SECRET_BYTES + sum(HOST_BYTES + len(host) for host in secret.hosts) for secret in spec.secrets)
    return SANDBOX_BYTES + environment_bytes(spec.env) + secret_bytes(spec) + texts + rules_bytes(network.rules)


def secret_bytes(spec: SandboxSpec) -> int:
    """What its secrets take until its end: values and placeholders."""
    own = sum(len(secret.value.reveal()) for secret in spec.secrets if secret.value is not None)
    return own + sum(len(secret.placeholder) for secret in spec.secrets)


def rules_bytes(rules: Sequence[NetworkRule]) -> int:
    return sum(
        RULE_BYTES + len(rule.host) + PORT_BYTES * len(rule.ports) + sum(map(_http_bytes, rule.http)) for rule in rules
    )


def _http_bytes(rule: HttpRule) -> int:
    """One character beyond 16 bits makes the object of a path four times as large."""
    return HTTP_BYTES + sum(PATTERN_BYTES + getsizeof(text) for text in (*rule.methods, *rule.paths))


def with_environment(command: Command, spec: SandboxSpec) -> Command:
    """Returns the command with its whole environment: the sandbox's with placeholders of its secrets, and over it its
    own. With a terminal it has TERM, as some programs do not start without it."""
    usual = {} if command.tty is None else {"TERM": "xterm"}
    placeholders = {secret.variable: secret.placeholder for secret in spec.secrets}
    more = {**usual, **spec.env, **placeholders}
    return replace(command, env={**more, **command.env}) if more else command


def check_environment(env: dict[str, str], limits: CommandLimits, pointer: str = "/env") -> list[FieldError]:
    errors: list[FieldError] = []
    if len(env) > limits.variables:
        return [FieldError(pointer, f"has {len(env)} variables; the runtime takes at most {limits.variables}")]
    for name, value in env.items():
        if len(errors) == WRONG_NAMED:
            break
        sizes = byte_length(name), byte_length(value)
        # The pointer goes into an answer, so it must have bytes even where the name has none.
        shown = name[:64].encode(errors="replace").decode()
        where = f"{pointer}/{shown.replace('~', '~0').replace('/', '~1')}"
        if name in limits.reserved:
            errors.append(FieldError(where, "is reserved: the runtime itself uses this variable"))
        elif sizes[0] is None or sizes[1] is None:
            errors.append(FieldError(where, "must not contain half of a surrogate pair"))
        elif not _VARIABLE.fullmatch(name):
            errors.append(FieldError(where, "a name must not be empty nor contain = or NUL"))
        elif "\0" in value:
            errors.append(FieldError(where, "must not contain a NUL byte"))
        elif sizes[0] + sizes[1] + 1 > limits.argument_bytes:
            errors.append(FieldError(where, f"is longer than the runtime's {limits.argument_bytes} bytes"))
    if not errors and (total := environment_bytes(env)) > limits.total_bytes:
        errors.append(FieldError(pointer, f"takes {total} bytes; the runtime takes at most {limits.total_bytes}"))
    return errors


def check_idle_counts(counts: IdleCounts | None, runtime: RuntimeInfo) -> None:
    """Raises CapabilityMissing."""
    if counts is IdleCounts.PROCESSES and Capability.USAGE not in runtime.capabilities:
        raise CapabilityMissing([Capability.USAGE], runtime.name)


def is_merged(command: Command) -> bool:
    """Both of its channels go into one pipe. On a terminal they do in any case."""
    return command.stderr is Stderr.STDOUT and command.tty is None


def check_start(command: Command, runtime: RuntimeInfo) -> None:
    """Raises InvalidRequest, or CapabilityMissing if the runtime cannot give the command what it asks for."""
    check_command(command, runtime.command_limits)
    needed = {Capability.STDIN} if command.stdin is Stdin.OPEN else set()
    needed |= {Capability.PTY} if command.tty is not None else set()
    needed |= {Capability.MERGED_OUTPUT} if is_merged(command) else set()
    if missing := needed - runtime.capabilities:
        raise CapabilityMissing(missing, runtime.name)


def check_command(command: Command, limits: CommandLimits) -> None:
    """Raises InvalidRequest with the wrong fields: the first 32 of arguments and of variables."""
    errors: list[FieldError] = []
    if not command.argv or not command.argv[0]:
        errors.append(FieldError("/command", "must name a program"))
    if len(command.argv) > limits.arguments:
        errors.append(
            FieldError("/command", f"has {len(command.argv)} arguments; the runtime takes at most {limits.arguments}")
        )
    else:
        for index, argument in enumerate(command.argv):
            if len(errors) == WRONG_NAMED:
                break
            size = byte_length(argument)
            if "\0" in argument or size is None:
                errors.append(FieldError(f"/command/{index}", "must not contain a NUL byte or half a surrogate pair"))
            elif size > limits.argument_bytes:
                errors.append(
                    FieldError(f"/command/{index}", f"is longer than the runtime's {limits.argument_bytes} bytes")
                )
    errors += check_environment(dict(command.env), limits)
    workdir = byte_length(command.workdir)
    if "\0" in command.workdir or workdir is None:
        errors.append(FieldError("/workdir", "must not contain a NUL byte or half a surrogate pair"))
    elif not 0 < workdir < 4096:
        errors.append(FieldError("/workdir", "must have 1 to 4095 bytes: the kernel takes no longer path"))
    if not errors:
        total = sum(len(a.encode()) + 9 for a in command.argv) + environment_bytes(command.env)
        if total > limits.total_bytes:
            errors.append(
                FieldError(
                    "/command",
                    f"takes {total} bytes with its environment; the runtime takes at most {limits.total_bytes}",
                )
            )
    if errors:
        raise InvalidRequest(errors)
