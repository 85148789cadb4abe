"""Starts the launcher: `python -I -S -c '…' CONFIG_FD`. The configuration comes on a descriptor and not from the
gateway.

First comes what needs the host (groups, socket, storage). Then the launcher enters the template. After that nothing
can be imported.
"""

from __future__ import annotations

import _signal
import _socket
import ctypes
import gc
import os
import resource
import sys

from app.launcher import config
from app.launcher.daemon import cgroup_mounts, file_locks, loop_storage, probe, template
from app.launcher.daemon.server import LauncherServer
from app.launcher.kernel.syscalls import PR_CAPBSET_DROP, PR_SET_NAME, PR_SET_PDEATHSIG, prctl


def main(config_fd: int, parent: int) -> None:
    """`parent` is the pid of the supervisor, with which it dies, or 0 for a service of its own."""
    with open(config_fd, closefd=True) as file:
        settings = config.parse(file.read())
    if parent:
        prctl(PR_SET_PDEATHSIG, 9)
        if os.getppid() != parent:
            return
    missing = probe.missing_capabilities()
    if missing:  # without CAP_KILL it would start, and fail at the first end of a sandbox
        raise SystemExit(f"bulkhead: the launcher needs {', '.join(missing)} and does not have it")
    os.umask(0o022)  # other users read what it makes: the gateway, the sandboxes
    for name in (_signal.SIGINT, _signal.SIGHUP):
        _signal.signal(name, _signal.SIG_DFL)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _hide_command_line()
    _raise_descriptor_limit(settings)
    tree = cgroup_mounts.open_tree(settings.cgroup_parent)
    try:
        tree.end_frozen()
        tree.clean()
        tree.make_workers_group(settings.max_sandboxes)
    except OSError as error:
        sentence = f"the control groups {settings.cgroup_parent} hold processes that are not ours, or cannot be used"
        raise SystemExit(f"bulkhead: {sentence}: {error.strerror}") from None
    listener = _listen(settings)
    lock_counter = file_locks.open_counter()
    disks = loop_storage.open_loop_storage(settings.storage_dir)
    stores = template.enter_template(settings, tree.group_mounts)
    _empty_bounding_set()  # before the server, whose first disk starts mke2fs
    server = LauncherServer(settings, listener, tree, lock_counter, disks, stores)
    _forget_how_to_import()
    wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(*_: object) -> None:
        server.stopping = True

    _signal.signal(_signal.SIGTERM, stop)
    _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _share_page_tables()
    # Frozen objects are never written to by a collection, so a sandbox's clone shares their pages for its whole life.
    gc.collect()
    gc.freeze()
    gc.disable()
    os.write(1, b"ready\n")
    server.serve(wake)


def _raise_descriptor_limit(settings: config.Config) -> None:
    """A sandbox holds two descriptors, and some more while it is made. A command's own limit is set in its worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 4 * settings.max_sandboxes + 256
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard))


def _hide_command_line() -> None:
    """PID 1 of a sandbox is a clone of this process, and anybody inside may read its command line: it must not tell
    where on the host the service is installed. proc_pid_stat(5), fields 48 and 49: where the kernel reads it from."""
    name = b"bulkhead"
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, name, len(name))
    prctl(PR_SET_NAME, ctypes.c_char_p(name))


def _listen(settings: config.Config) -> _socket.socket:
    if os.path.exists(settings.socket):
        os.unlink(settings.socket)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
    before = os.umask(0o177)
    try:
        listener.bind(settings.socket)
    finally:
        os.umask(before)
    os.chown(settings.socket, settings.gateway_uid, settings.gateway_gid, follow_symlinks=False)
    listener.listen(8)
    return listener


def _share_page_tables() -> None:
    """The kernel copies a mapping's page table to a clone only if a page of it was ever written to; else the clone
    faults the interpreter's and libraries' pages in again, one by one. So one byte of each is written back as it is.

    Measured: 307 page faults in a worker until it is ready, 394 without. Where /proc/self/mem may not be written to,
    it only costs that time.
    """
    with open("/proc/self/maps") as file:
        mapped = [line.split() for line in file]
    try:
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    for fields in mapped:
        if len(fields) == 6 and fields[5].startswith("/") and fields[1].endswith("p") and fields[1][0] == "r":
            begin = int(fields[0].partition("-")[0], 16)
            try:
                os.pwrite(memory, os.pread(memory, 1, begin), begin)
            except OSError:
                continue
    os.close(memory)


def _forget_how_to_import() -> None:
    """From here on an import raises. The root is a template now, perhaps made from a stranger's image: no module,
    codec or library of it may ever be loaded into this program."""
    for codec in ("utf-8", "ascii", "latin-1"):
        b"".decode(codec)
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def _empty_bounding_set() -> None:
    """Nothing that this program might exec could gain a capability; ours stay."""
    capability = 0
    while True:
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            return
        capability += 1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
