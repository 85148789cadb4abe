"""What a test may set: times, which default to as near to nothing as keeps their order, and images that are missing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Settings:
    """Real values in the comments; the first ones differ so that tests are fast, the second ones do not hurt."""

    boot_seconds: float = 0.0  # 2 to 5
    main_seconds: float = 0.0  # from the answer of /start until the main command runs; a few milliseconds
    stop_grace: float = 0.1  # 2: from TERM to KILL of the main command
    settle_seconds: float = 0.05  # 3: the box is dead and still says `running`
    orphan_seconds: float = 0.0  # 5: an exec in a box whose server died while it booted

    timeout_grace: float = 2.0  # from TERM to KILL after timeout_seconds
    ping_seconds: float = 15.0
    write_seconds: float = 20.0  # one frame that cannot be written ends the session
    close_seconds: float = 5.0  # the wait for the client's Close
    evict_seconds: float = 300.0  # a completed execution is kept so long
    reconnect_grace: float = 300.0  # without a client so long: HUP
    shutdown_grace: float = 30.0  # after that TERM, then KILL and evict
    tick_seconds: float = 30.0  # how often the reaper, AutoStop and AutoDelete look

    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # PATH, as the image says
    user: str = "root"  # of every box that names none, as the image says
    shares_network: bool = False  # boxes that have a network have the one of this host
    missing_images: set[str] = field(default_factory=set)  # names and rootfs paths that cannot be resolved
