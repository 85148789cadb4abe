"""The isolation on one page: the steps that turn a clone of the launcher into a confined worker, and why they are in
this order.

The clone call itself makes the namespaces for users, mounts, processes, IPC and host name (`daemon/zygote.py`). The
runner stops at the first step that is refused and reports its name. A sandbox without one step is never served.
"""

from __future__ import annotations

from app.launcher.sandbox import lockdown, steps
from app.launcher.sandbox.setup import SandboxSetup

# Ahead: the same for every sandbox, so the launcher lets its next clone do it while nobody waits for one.
AHEAD = (
    steps.let_go_of_the_launcher,  # first: nothing below may reach another sandbox's descriptors, whatever it does
    steps.enter_network_namespace,  # here, not in the clone: 0.4 ms, and the launcher must serve others meanwhile
    steps.raise_loopback,
    steps.show_network,  # the launcher lets the gateway read it while the rest is built
    steps.name_host,
    steps.await_identity,  # as late as possible: the maps are written while the network is made
    steps.take_identity,  # before the mounts, so that what is made in them belongs to the sandbox's user
    steps.leave_keyring,  # after the identity: the new keyring counts for the sandbox's user, not for root
    steps.mount_proc,
    steps.mask_proc,  # right after: no moment with an unmasked /proc of its own
    steps.prove_masks,
    steps.mount_storage,
    steps.mount_terminals,
    lockdown.set_limits,
    lockdown.empty_bounding_set,  # needs CAP_SETPCAP; what is held already stays
    lockdown.begin_rules,  # what is mounted later lies below their folders
    lockdown.rehearse,
    steps.await_groups,
    steps.enter_own_cgroup,  # before the namespace, whose root is the group in which it was made
    steps.enter_cgroup_namespace,
    steps.mount_groups,  # after the namespace, whose root is what is mounted
    steps.prove_groups,
    steps.join_cgroup,  # after the namespace: the worker lives outside of the limits
)

# What the plan asks for. Like the steps above it needs capabilities, which are the user namespace's only.
FROM_PLAN = (
    steps.await_plan,
    steps.open_network,  # after join_cgroup: what the sockets take is not the sandbox's
    steps.keep_to_cpus,
    steps.size_storage,
    steps.mount_disk,  # after the size, which is that of what the disk replaces
    steps.prove_storage,
    steps.show_memory,  # after join_cgroup: what the worker needs for it is not the sandbox's
    steps.prove_memory,
    steps.trust_authority,  # after join_cgroup, from which it goes back into the sandbox's group for a moment
    steps.prove_trust,
    lockdown.prove_read_only_root,  # after the last mount
)

# The lockdown: each step takes away what the ones above needed. Nothing here can be undone.
LOCKDOWN = (
    lockdown.drop_all_capabilities,
    lockdown.prove_identity,
    lockdown.die_with_the_launcher,  # after the last change of credentials: that clears it
    lockdown.forbid_new_privileges,  # Landlock and seccomp without privileges ask for it
    lockdown.restrict_files,  # after the last mount: a rule is dead under a later one, and a domain forbids mounting
    lockdown.hide_from_commands,  # after restrict_files: the kernel opens /proc/self for nobody but root from here on
    lockdown.filter_system_calls,  # last: it denies what the steps above call
)

PROOF = (
    lockdown.prove_landlock,
    lockdown.prove_filter,
    lockdown.prove_network,
)


class StepRefused(Exception):
    """A step that the kernel refused."""

    def __init__(self, step: str, number: int, detail: str) -> None:
        self.step, self.errno, self.detail = step, number, detail
        super().__init__(step)


def confine(setup: SandboxSetup) -> None:
    """Raises StepRefused with the name of the step that failed."""
    for step in (*AHEAD, *FROM_PLAN, *LOCKDOWN, *PROOF):
        try:
            step(setup)
        except OSError as error:
            detail = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
            raise StepRefused(step.__name__, error.errno or 0, detail) from error
