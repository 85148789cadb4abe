"""Runtime `process`: Linux kernel isolation, made by the launcher. Here is its unprivileged half, in the gateway."""
