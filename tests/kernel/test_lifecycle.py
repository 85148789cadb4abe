"""What a running service ends, it ends wholly, and nothing beside it."""

from __future__ import annotations

import time
from pathlib import Path

from tests.kernel import host
from tests.kernel.talk import Running, start
from tests.service import Service

# Forks twice into a session of its own, ignores what can be ignored, holds no descriptor of ours.
DAEMON = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (1, 2, 3, 15):
            signal.signal(number, signal.SIG_IGN)
        os.closerange(0, 100)
        open("/workspace/" + sys.argv[1], "w").write(f"{os.getpid()}\\n")
        while True:
            signal.pause()
    os._exit(0)
os.wait()
while not os.path.exists("/workspace/" + sys.argv[1]):
    pass
print("daemon is up", flush=True)
"""


def daemon(service: Service, sandbox: str, name: str, *, stay: bool) -> Running:
    running = start(service, sandbox, "python3", "-c", DAEMON + ("signal.pause()" if stay else ""), name)
    running.saw(b"daemon is up")
    return running


def alive(service: Service, sandbox: str, name: str) -> bool:
    check = f"read pid < /workspace/{name} && grep -q python3 /proc/$pid/cmdline"  # a zombie has none
    return bool(service.run(sandbox, "sh", "-c", check)["exit"]["code"] == 0)


def only_the_worker_stays(service: Service, sandbox: str) -> None:
    """A group does not list a process any more that is still on its way to being a zombie."""
    uid = host.host_uid(service, sandbox)
    host.until(lambda: len(host.living_of(uid)) == 1, "only the worker stays")


def test_delete_of_an_execution_ends_its_daemons_and_nothing_of_its_neighbours(service: Service, sandbox: str) -> None:
    first, second = (daemon(service, sandbox, name, stay=True) for name in ("one", "two"))
    uid = host.host_uid(service, sandbox)
    assert len(host.processes_of(uid)) == 5  # the worker, and for each the program and its daemon
    assert first.delete() == 204
    host.until(lambda: len(host.living_of(uid)) == 3, "the worker and the second with its daemon stay")
    assert not alive(service, sandbox, "one")
    assert alive(service, sandbox, "two")
    assert second.show()["state"] == "running"


def test_delete_of_an_ended_execution_still_ends_its_daemons(service: Service, sandbox: str) -> None:
    running = daemon(service, sandbox, "left", stay=False)
    ending = running.exit()
    assert (ending["reason"], ending["code"]) == ("exited", 0)
    assert alive(service, sandbox, "left")
    assert running.delete() == 204
    only_the_worker_stays(service, sandbox)
    assert running.exit_now() == ending, "an exit never changes"


def test_deletes_while_the_processes_end_by_themselves_do_not_disturb_the_launcher(
    service: Service, sandbox: str
) -> None:
    launcher = service.children()["launcher"]
    for turn in range(100):
        script = f"for i in 1 2 3 4; do setsid sleep 0.00{turn % 10} & done; exec sleep 0.00{turn % 7}"
        running = start(service, sandbox, "sh", "-c", script)
        assert running.delete() == 204
        assert running.exit_now()["reason"] in ("exited", "killed")
    assert service.children()["launcher"] == launcher
    only_the_worker_stays(service, sandbox)


def test_delete_of_an_execution_outruns_a_fork_bomb(service: Service, sandbox: str) -> None:
    bomb = "import os\nprint('go', flush=True)\nwhile True:\n try: os.fork()\n except OSError: pass"
    running = start(service, sandbox, "python3", "-c", bomb)
    running.saw(b"go")
    assert running.delete() == 204
    only_the_worker_stays(service, sandbox)
    assert service.run(sandbox, "true")["exit"]["code"] == 0


def test_delete_of_a_sandbox_leaves_no_process_group_or_namespace(service: Service) -> None:
    sandbox = service.create()
    for name in ("one", "two"):
        daemon(service, sandbox, name, stay=name == "one")
    uid, worker = host.host_uid(service, sandbox), host.worker_of(service, sandbox)
    own = {
        kind: Path(f"/proc/{worker}/ns/{kind}").stat().st_ino for kind in ("mnt", "net", "pid", "ipc", "uts", "user")
    }
    assert host.groups_of(service, uid)
    assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    assert host.processes_of(uid) == []
    assert host.groups_of(service, uid) == []
    for kind, inode in own.items():
        assert inode not in host.namespaces(of=kind)


def test_a_background_child_does_not_delay_the_exit_and_prints_on_without_sigpipe(
    service: Service, sandbox: str
) -> None:
    child = "trap 'echo broken > /workspace/pipe' PIPE; while [ ! -e go ]; do sleep 0.01; done; " + (
        "for i in $(seq 2000); do echo line $i of a child that was left behind || exit 1; done; echo fine > done"
    )
    running = start(service, sandbox, "sh", "-c", f"({child}) & echo mine")
    ending = running.exit()
    assert ending["reason"] == "exited", "the child waits until later in this test, the exit must not"
    assert running.out() == b"mine\n"
    wait = "touch go; while [ ! -s done ] && [ ! -e pipe ]; do sleep 0.01; done; cat done"
    assert service.run(sandbox, "sh", "-c", wait)["stdout"] == "fine\n"
    assert running.out() == b"mine\n", "what came after the end is not in the log"


def test_a_silent_child_that_holds_stdout_costs_a_tenth_of_a_second(service: Service, sandbox: str) -> None:
    """More than without one: 50 ms of silence on each of two channels. One that prints costs a second."""

    def best(script: str) -> float:
        seconds = []
        for _ in range(10):
            began = time.monotonic()
            start(service, sandbox, "sh", "-c", script).exit()
            seconds.append(time.monotonic() - began)
        return min(seconds)

    assert best("sleep 1000 & exit 0") - best("exit 0") < 0.5


def test_orphans_are_reaped(service: Service, sandbox: str) -> None:
    for _ in range(20):
        service.run(sandbox, "sh", "-c", "(sleep 0.01 &) ; (true &) ; (sh -c 'kill -9 $$' &) ; exit 0")
    uid = host.host_uid(service, sandbox)
    host.until(lambda: len(host.processes_of(uid)) == 1, "only the worker is left, and no zombie")


def test_groups_go_once_what_was_left_behind_has_ended(service: Service, sandbox: str) -> None:
    """A host can have 65,535 memory groups; they are taken away as further executions end."""
    uid = host.host_uid(service, sandbox)
    service.run(sandbox, "mkfifo", "go")
    for _ in range(8):
        assert service.run(sandbox, "sh", "-c", "cat go & exit 0")["exit"]["code"] == 0

    def rooms() -> list[str]:
        """Those that are left of the eight."""
        folders = [Path(folder).name.rpartition(".")[2] for folder in host.groups_of(service, uid)]
        return [number for number in folders if number.isdigit() and 2 <= int(number) <= 9]

    def rooms_later() -> list[str]:
        """After one more execution."""
        service.run(sandbox, "true")
        return rooms()

    assert len(set(rooms_later())) == 8, "what was left behind waits for a writer"
    assert service.run(sandbox, "sh", "-c", ": >go")["exit"]["code"] == 0
    host.until(lambda: not rooms_later(), "their groups go")


def test_expiry_ends_an_idle_sandbox_and_not_a_busy_one(service: Service) -> None:
    idle, busy = service.create(), service.create()
    running = start(service, busy, "sleep", "1000")
    uids = host.host_uid(service, idle), host.host_uid(service, busy)
    for each in (busy, idle):
        assert service.call("PATCH", f"/sandboxes/{each}", {"idle_seconds": 1})[0] == 200
    host.until(lambda: not host.processes_of(uids[0]), "the idle one ends")
    assert len(host.processes_of(uids[1])) == 2
    assert running.delete() == 204
    host.until(lambda: not host.processes_of(uids[1]), "the busy one ends when it is idle")
    shown = {}

    def expired() -> bool:  # only now: a request to a sandbox that is idle keeps it alive
        shown.update(service.call("GET", f"/sandboxes/{busy}")[1])
        return bool(shown["state"] == "destroyed")

    host.until(expired, "its end is recorded")
    assert (shown["state"], shown["state_reason"]) == ("destroyed", "the sandbox expired: it was idle")
