"""Runtime `process`: isolation by the Linux kernel, made by the launcher. This is its unprivileged part, in the
gateway."""
