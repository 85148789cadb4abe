"""Interfaces of the kernel that the standard library does not have: system calls, Landlock, seccomp filters."""
