"""A command that cannot be started is a 201 that ends with `start_failed`, and names the step and the errno."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from app.core.commands import hint_for
from tests.kernel.talk import start
from tests.require import require
from tests.service import Service


def failure(service: Service, sandbox: str, *command: str, **body: Any) -> tuple[str, int]:
    """(detail, the one integer of the stream's exit frame)."""
    running = start(service, sandbox, *command, **body)
    ending = running.exit()
    assert (ending["reason"], ending["code"], ending["signal"]) == ("start_failed", None, None)
    with running.stream() as viewer:
        return ending["detail"], viewer.until_exit()["exit_code"]


def test_a_missing_program_is_127_with_enoent(service: Service, sandbox: str) -> None:
    for program in ("no-such-program", "/no/such/program", "./missing", "cd", "main.py"):
        expected = f"'{program}' cannot be executed: ENOENT (No such file or directory)"
        assert failure(service, sandbox, program) == (expected + hint_for(program, errno.ENOENT), 127)
    assert failure(service, sandbox, "/usr/bin/env/x")[1] == 127  # ENOTDIR


def test_a_path_variable_without_the_program_is_127(service: Service, sandbox: str) -> None:
    detail, code = failure(service, sandbox, "true", env={"PATH": "/workspace:/nowhere"})
    assert (detail, code) == ("'true' cannot be executed: ENOENT (No such file or directory)", 127)


def test_a_file_without_the_right_to_execute_is_126_with_eacces(service: Service, sandbox: str) -> None:
    assert service.run(sandbox, "sh", "-c", "echo 'exit 3' > script; chmod 644 script")["exit"]["code"] == 0
    hint = "a file needs the mode 0755 to be executed, or its interpreter before it, as in: python3 ./main.py"
    expected = (f"'./script' cannot be executed: EACCES (Permission denied); {hint}", 126)
    assert failure(service, sandbox, "./script") == expected
    assert failure(service, sandbox, "script", env={"PATH": "/workspace"})[1] == 126


def test_a_directory_is_126_with_eacces(service: Service, sandbox: str) -> None:
    expected = "'/usr' cannot be executed: EACCES (Permission denied)" + hint_for("/usr", errno.EACCES)
    assert failure(service, sandbox, "/usr") == (expected, 126)


def test_a_working_directory_that_cannot_be_entered_is_named(service: Service, sandbox: str) -> None:
    detail, code = failure(service, sandbox, "true", workdir="/nowhere")
    assert detail == "the working directory '/nowhere' cannot be entered: ENOENT (No such file or directory)"
    assert code == 126
    assert "ENOTDIR" in failure(service, sandbox, "true", workdir="/usr/bin/env")[0]


def test_a_file_that_is_no_program_is_126_with_enoexec(service: Service, sandbox: str) -> None:
    """execve(2)'s word, not a shell's: there is no fall-back to one."""
    assert service.run(sandbox, "sh", "-c", "printf 'exit 3' > noise; chmod 755 noise")["exit"]["code"] == 0
    expected = "'./noise' cannot be executed: ENOEXEC (Exec format error)" + hint_for("./noise", errno.ENOEXEC)
    assert failure(service, sandbox, "./noise") == (expected, 126)


def test_an_interpreter_that_is_missing_is_127(service: Service, sandbox: str) -> None:
    assert service.run(sandbox, "sh", "-c", "printf '#!/no/shell\\n' > lost; chmod 755 lost")["exit"]["code"] == 0
    detail, code = failure(service, sandbox, "./lost")
    assert (code, "the interpreter in its first line (#!)" in detail) == (127, True)


def test_a_command_beyond_the_kernels_limit_is_refused_by_name(service: Service, sandbox: str) -> None:
    path = f"/sandboxes/{sandbox}/executions"
    status, problem = service.call("POST", path, {"command": ["true", *["x" * 100_000] * 20]})
    assert (status, problem["errors"][0]["pointer"]) == (422, "/command")
    status, problem = service.call("POST", path, {"command": ["true", "x" * 131_072]})
    assert (status, problem["errors"][0]["pointer"]) == (422, "/command/1")
    assert service.call("GET", path)[1]["items"] == []


def test_the_longest_command_that_is_accepted_runs(service: Service, sandbox: str) -> None:
    """It does not fit into a packet: it travels in a memfd."""
    arguments = ["x" * 131_071] * 14
    done = service.run(sandbox, "sh", "-c", "echo $# ${#14}", "sh", *arguments)
    assert (done["exit"]["code"], done["stdout"]) == (0, "14 131071\n")


def test_more_than_the_stack_limit_allows_is_126_with_e2big(tmp_path: Path) -> None:
    """A quarter of RLIMIT_STACK is the kernel's limit for arguments, execve(2)."""
    require("root", os.geteuid() == 0, "a service that is started as root")
    with Service(tmp_path, prefix=("prlimit", "--stack=1048576:1048576")) as service:
        detail, code = failure(service, service.create(), "true", *["x" * 100_000] * 5)
        assert (detail, code) == ("'true' cannot be executed: E2BIG (Argument list too long)", 126)


def test_the_process_limit_is_told_with_eagain(service: Service) -> None:
    sandbox = service.create(limits={"processes": 4})
    fill = "import os\nfor _ in range(3):\n  if os.fork() == 0: os.execvp('sleep', ['sleep', '1000'])\n" + (
        "print('full', flush=True)\nos.execvp('sleep', ['sleep', '1000'])"
    )
    running = start(service, sandbox, "python3", "-c", fill)
    running.saw(b"full")
    detail, code = failure(service, sandbox, "true")
    assert (detail, code) == ("'true' cannot be executed: EAGAIN (Resource temporarily unavailable)", 126)
    assert running.delete() == 204
    assert service.run(sandbox, "true")["exit"]["code"] == 0
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_a_limit_of_one_process_lets_one_run(service: Service) -> None:
    sandbox = service.create(limits={"processes": 1})
    assert service.run(sandbox, "true")["exit"]["code"] == 0
    done = service.run(sandbox, "python3", "-c", "import os; os.fork()")
    assert done["exit"]["code"] == 1
    assert "BlockingIOError" in done["stderr"]
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_nothing_of_a_failed_start_is_left(service: Service, sandbox: str) -> None:
    for _ in range(50):
        start(service, sandbox, "no-such-program").exit()
    listed = service.run(
        sandbox, "python3", "-c", "import os; print(sorted(p for p in os.listdir('/proc') if p.isdigit()))"
    )
    assert len(listed["stdout"].split(",")) == 2, "the worker and the one that looks"
