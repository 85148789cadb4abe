"""The commands and options. It uses argparse, as importing what typer needs takes a third of a whole `bulkhead run --
true`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from app import __version__
from app.cli import FAILED, USAGE, commands, operate

EPILOG = (
    "BULKHEAD_CLIENT_URL is the address of the service (default: http://127.0.0.1:8000), BULKHEAD_CLIENT_KEY the key."
)
STATUS = """Exit status: that of the command; 128+n if signal n ended it; 124 timeout; 137 out of memory or killed;
126 or 127 if it could not be started; 125 if bulkhead itself failed."""

LEAVE = """Ctrl-P Ctrl-Q leaves a terminal, with status 0, and the execution runs on. Without a terminal, or
with --no-stdin, a signal leaves. Else the exit status is that of exec."""

# A usage error of these must not be taken for the status of the command that they were to run.
RUN: dict[str, Any] = {"usage": "bulkhead run [OPTIONS] [--] CMD ...", "epilog": STATUS, "usage_status": FAILED}
EXEC: dict[str, Any] = {
    "usage": "bulkhead exec [OPTIONS] SANDBOX [OPTIONS] [--] CMD ...",
    "epilog": STATUS,
    "usage_status": FAILED,
}


class Parser(argparse.ArgumentParser):
    """`elsewhere`: what adds the options that belong to another command, and the name of that command."""

    def __init__(
        self,
        usage_status: int = USAGE,
        elsewhere: tuple[Callable[[Parser], None], str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.usage_status, self.elsewhere = usage_status, elsewhere

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Lets a command refuse unknown arguments itself. Otherwise the parser above it would refuse them, with its own
        usage and status."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument: {' '.join(unknown)}{self._advice(unknown[0].partition('=')[0])}")
        return found, []

    def _advice(self, option: str) -> str:
        if self.elsewhere is not None:
            add_options, command = self.elsewhere
            other = Parser()
            add_options(other)
            if option in other._long_options():
                return f"; give it to `bulkhead {command}`"
        near = self._nearest(option)
        return f"; did you mean {near}?" if near else ""

    def _nearest(self, option: str) -> str | None:
        if option == "--file":  # other programs name a file so, and here --file-mib would be taken for it
            return None
        from difflib import get_close_matches

        known = self._long_options()
        near = [name for name in known if len(option) > len("--") and name.startswith(option)]
        return next(iter(near or get_close_matches(option, known, n=1)), None)

    def _long_options(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        self.exit(self.usage_status, f"{self.format_usage()}bulkhead: {message}\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`do` in the result is the function to call with it. Raises SystemExit."""
    parser = Parser(
        prog="bulkhead", description="Run untrusted code in sandboxes, and stream its output live.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"bulkhead {__version__}")
    kinds = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _add(kinds, "run", commands.run, "run one command in a new sandbox, then destroy it", **RUN)
    _sandbox_options(run)
    run.add_argument("--id", metavar="ID", help="id of the sandbox (default: the service chooses one)")
    _command_options(run)
    run.add_argument(
        "--collect",
        metavar="PATH",
        action="append",
        help="bring this file back, or all that match a pattern; repeatable; 8 MiB in all at most",
    )
    run.add_argument("--into", metavar="DIR", default=".", help="folder for files of --collect (default: this one)")
    run.add_argument("--keep", action="store_true", help="do not destroy the sandbox; print its id on stderr")
    _command(run)

    create = _add(kinds, "create", commands.create, "create a sandbox and print its id", elsewhere=_OF_EXEC)
    _sandbox_options(create)
    create.add_argument("--id", metavar="ID", help="id of the sandbox (default: the service chooses one)")
    _env_options(create)

    _json(_add(kinds, "ls", commands.list_sandboxes, "list sandboxes, or the executions of one"))
    listing = kinds.choices["ls"]
    listing.add_argument("sandbox", metavar="SANDBOX", nargs="?", help="list the executions of this sandbox")
    listing.add_argument("--all", "-a", action="store_true", help="include destroyed sandboxes that are still listed")
    listing.add_argument(
        "--label",
        "-l",
        metavar="KEY=VALUE",
        type=label,
        action="append",
        help="only sandboxes with this label; repeatable",
    )

    _exec(kinds)

    show = _add(kinds, "show", commands.show, "show a sandbox: its limits, its storage, and how it is isolated")
    _json(show)
    show.add_argument("sandbox", metavar="SANDBOX", help="id of the sandbox")

    usage = _add(kinds, "usage", commands.usage, "show what a sandbox, or one execution of it, uses")
    _json(usage)
    usage.add_argument("sandbox", metavar="SANDBOX", help="id of the sandbox")
    usage.add_argument("execution", metavar="EXECUTION", nargs="?", help="id of one execution of it")

    attach = _add(kinds, "attach", commands.attach, "show and type into an execution that runs already", epilog=LEAVE)
    attach.add_argument("--no-stdin", action="store_true", help="only watch")
    attach.add_argument("--take", action="store_true", help="take stdin over from another client that holds it")
    _execution(attach)

    logs = _add(kinds, "logs", commands.logs, "print the stored output of an execution")
    logs.add_argument(
        "--follow", "-f", action="store_true", help="continue until the execution ends, and exit with its status"
    )
    _execution(logs)

    kill = _add(kinds, "kill", commands.kill, "kill everything that an execution started, or send it a signal")
    kill.add_argument("--signal", "-s", metavar="S", help="send this signal to its process group, such as SIGINT")
    _execution(kill)

    _network(kinds)

    remove = _add(kinds, "rm", commands.remove, "destroy sandboxes; when it returns, no process of them exists")
    remove.add_argument("sandboxes", metavar="SANDBOX", nargs="+", help="id of a sandbox")

    _json(_add(kinds, "runtimes", commands.runtimes, "list the runtimes of the service and what they can do"))
    _operator(kinds)
    found = parser.parse_args(arguments)
    return _rest_of_exec(found) if "rest" in found else found


def _add(kinds: Any, name: str, do: Any, about: str, **options: Any) -> Parser:
    parser: Parser = kinds.add_parser(name, help=about, description=about, **options)
    parser.set_defaults(do=do)
    return parser


_DATA = (
    "folder for keys and state (default: /var/lib/bulkhead as root, else ~/.local/state/bulkhead; "
    "variable BULKHEAD_DATA)"
)


def _operator(kinds: Any) -> None:
    serve = _add(kinds, "serve", operate.serve, "run the service: the launcher and the gateway")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1; variable BULKHEAD_HOST)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8000; variable BULKHEAD_PORT)")
    serve.add_argument("--data", metavar="DIR", help=_DATA)
    launcher = _add(kinds, "launcher", operate.launcher, "run the launcher alone, for a gateway that is not root")
    _apart(launcher, "BULKHEAD_PROCESS__LAUNCHER_SOCKET")
    launcher.add_argument("--check", action="store_true", help="check a running launcher; status 1 if it lacks a layer")
    egress = _add(kinds, "egress", operate.egress, "run the egress process alone, for a gateway that is not root")
    _apart(egress, "BULKHEAD_EGRESS__SOCKET")
    egress.add_argument("--check", action="store_true", help="check a running egress process, as the user that it is")
    key = _add(kinds, "key", None, "manage keys of clients")
    new = _add(key.add_subparsers(metavar="COMMAND", required=True), "new", operate.new_key, "make and print a key")
    new.add_argument("--data", metavar="DIR", help=_DATA)
    new.add_argument("name", metavar="NAME", help="name of the client, for the log")
    _json(
        _add(
            kinds,
            "probe",
            operate.probe,
            "show which isolation layers this host has; status 1 if a needed one is missing",
        )
    )


# --- options that several commands share


def _apart(service: Parser, variable: str) -> None:
    """Of a service that runs apart from its gateway."""
    service.add_argument("--socket", metavar="PATH", help=f"socket to listen on (variable {variable})")
    service.add_argument(
        "--gateway-uid",
        metavar="N",
        type=int,
        help="uid of the gateway. The launcher also serves root; the egress process serves nobody else "
        "(variable BULKHEAD_PROCESS__GATEWAY_UID)",
    )


def label(text: str) -> tuple[str, str]:
    return _pair(text, "a label as KEY=VALUE")


def variable(text: str) -> tuple[str, str]:
    return _pair(text, "a variable as NAME=VALUE")


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"write {form}")
    return name, value


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return value


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _env_options(parser: Parser) -> None:
    parser.add_argument(
        "--env", "-e", metavar="NAME=VALUE", type=variable, action="append", help="an environment variable; repeatable"
    )
    parser.add_argument("--workdir", "-w", metavar="DIR", help="working directory of commands")


def _command_options(parser: Parser) -> None:
    parser.add_argument("--timeout", metavar="S", type=seconds, help="kill the command after S seconds")
    parser.add_argument(
        "--on-output-limit",
        choices=("kill", "drop_oldest"),
        help="what to do when it prints more than the sandbox keeps (default: drop_oldest)",
    )
    parser.add_argument(
        "--interactive", "-i", action="store_true", help="pass stdin on, also when it is a terminal or /dev/null"
    )
    parser.add_argument(
        "--tty", "-t", action="store_true", help="give the command a terminal, shown on this one; all keys go to it"
    )
    parser.add_argument(
        "--stderr", choices=("separate", "stdout"), help="stdout: stderr in the pipe of stdout, in the order of writing"
    )
    parser.add_argument("--cpu-seconds", metavar="S", type=seconds, help="processor time of the command's processes")
    parser.add_argument("--stack-mib", metavar="N", type=int, help="stack of each of its processes")
    parser.add_argument("--open-files", metavar="N", type=int, help="open descriptors of each of its processes")
    parser.add_argument("--file-mib", metavar="N", type=int, help="largest file that it can write")
    _env_options(parser)


def _network(kinds: Any) -> None:
    network = _add(
        kinds, "network", commands.network, "show what a sandbox did with its network, or change what it may reach"
    )
    network.add_argument("--follow", "-f", action="store_true", help="continue until the sandbox ends")
    network.add_argument("--refused", action="store_true", help="only what was refused")
    _rule_options(network, "this replaces all rules")
    network.add_argument("--allow-none", action="store_true", help="remove all rules")
    _json(network)
    network.add_argument("sandbox", metavar="SANDBOX", help="id of the sandbox")


def _rule_options(parser: Parser, more: str) -> None:
    parser.add_argument(
        "--allow",
        metavar="HOST:PORT",
        action="append",
        help=f"a host that can be reached by TLS or HTTP; *.name: all below it; {more}; repeatable",
    )
    parser.add_argument(
        "--allow-http",
        metavar="RULE",
        action="append",
        help="'HOST:PORT METHODS PATH ...': a host of which these requests are permitted, such as "
        "'api.example.com:443 GET,POST /v1/**'; TLS is read; without METHODS or PATH all are permitted; repeatable",
    )
    parser.add_argument(
        "--allow-raw",
        metavar="HOST:PORT",
        action="append",
        help="a host, address or network that can be reached by any protocol; repeatable",
    )


def _sandbox_options(parser: Parser) -> None:
    parser.add_argument(
        "--runtime", metavar="R", help="runtime, or auto (variables BULKHEAD_RUNTIME, OPENSHELL_RUNTIME)"
    )
    parser.add_argument("--isolation-min", choices=("kernel", "vm"), help="weakest isolation to accept")
    parser.add_argument(
        "--requires", metavar="CAP", action="append", help="a capability that the runtime must have; repeatable"
    )
    parser.add_argument("--image", metavar="IMAGE", help="image with the files of the sandbox")
    parser.add_argument(
        "--storage",
        choices=("memory", "disk"),
        help="where the files of the sandbox are: part of its memory, or on a disk of their own (default: the "
        "operator's choice)",
    )
    parser.add_argument("--profile", metavar="P", help="the operator's policy profile")
    parser.add_argument(
        "--network",
        choices=("none", "proxy", "direct"),
        help="network of the sandbox; proxy: only what the options --allow… name; direct: the hosts of --allow",
    )
    _rule_options(parser, "for direct: HOST")
    parser.add_argument(
        "--secret",
        metavar="NAME=@FILE:HOST",
        action="append",
        help="in requests to https://HOST the content of FILE stands where the program writes $NAME; permits HOST:443; "
        "HOST,HOST: several; NAME:HOST: a secret of the operator; repeatable",
    )
    parser.add_argument("--label", "-l", metavar="KEY=VALUE", type=label, action="append", help="a label; repeatable")
    parser.add_argument("--ttl", metavar="S", type=seconds, help="destroy the sandbox after S seconds")
    parser.add_argument("--idle", metavar="S", type=seconds, help="destroy the sandbox after S seconds without use")
    parser.add_argument(
        "--idle-counts", choices=("executions", "processes"), help="what counts as use (default: executions)"
    )
    _json(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--cpus", metavar="N", type=float, help="cores")
    limits.add_argument(
        "--memory-mib",
        metavar="N",
        type=int,
        help="memory. With --storage memory, files count towards it",
    )
    limits.add_argument("--processes", metavar="N", type=int, help="processes and threads")
    limits.add_argument(
        "--disk-mib",
        metavar="N",
        type=int,
        help="size of all files; at most --memory-mib with --storage memory, at least 16 with disk",
    )
    limits.add_argument("--output-bytes", metavar="N", type=int, help="output to keep for each channel")
    limits.add_argument(
        "--wall-seconds",
        metavar="S",
        type=seconds,
        help="longest time that any command may run (default: 3600; a longer --timeout raises it)",
    )


_OF_CREATE = (_sandbox_options, "create")
_OF_EXEC = (_command_options, "exec")


def _execution(parser: Parser) -> None:
    parser.add_argument("sandbox", metavar="SANDBOX", help="id of the sandbox")
    parser.add_argument("execution", metavar="EXECUTION", help="id of the execution")


def _command(parser: Parser) -> None:
    """Everything from the program's name on is the program's, options too. Its `--` is ours only if it comes first."""
    parser.add_argument(
        "command", metavar="[--] CMD ...", nargs=argparse.REMAINDER, help="the command and its arguments"
    )


# --- exec: options may stand on either side of SANDBOX, so what follows it is parsed once more


def _exec_options(parser: Parser) -> None:
    parser.add_argument("--id", metavar="ID", help="id of the execution (default: the service chooses one)")
    _command_options(parser)
    parser.add_argument("--memory-mib", metavar="N", type=int, help="memory of the command's processes")
    _json(parser)


def _exec(kinds: Any) -> None:
    parser = _add(kinds, "exec", commands.execute, "run a command in an existing sandbox", elsewhere=_OF_CREATE, **EXEC)
    _exec_options(parser)
    parser.add_argument("sandbox", metavar="SANDBOX", help="id of the sandbox")
    parser.add_argument("rest", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")


def _rest_of_exec(found: argparse.Namespace) -> argparse.Namespace:
    parser = Parser(elsewhere=_OF_CREATE, **EXEC)
    _exec_options(parser)
    _command(parser)
    return parser.parse_args(found.rest, found)
