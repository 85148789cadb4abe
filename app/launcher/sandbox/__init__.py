"""What runs in the clone: the isolation steps, then the sandbox's PID 1, its commands and its file agents."""
