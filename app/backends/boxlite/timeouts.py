"""How long to wait for what, in seconds. A real server needs the defaults. Tests use shorter ones for a double."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    connect: float = 5.0
    control: float = 30.0  # any call that has no time of its own
    stop: float = 60.0  # up to 13 s by themselves; hanging up in the middle wedges the box
    signal: float = 15.0  # the server gives up at 10 s
    shell: float = 15.0  # a program of ours in a box
    files: float = 60.0  # of silence, where a script of ours works on files: to delete or to hash a tree takes long
    piece: float = 20.0  # of silence before 72 KiB of a file
    cleanup: float = 5.0  # for what such a script takes away before it ends
    opening: float = 30.0  # a WebSocket
    closing: float = 5.0  # the server waits as long for our Close, and refuses another socket meanwhile
    ping: float = 15.0  # between our pings on a WebSocket; the server sends none while output flows
    pong: float = 30.0  # for its answer to one
    health_interval: float = 1.5
    health_answer: float = 2.4  # with a beat and the second for which the API believes: less than 5 s to the truth
    status_lag: float = 4.0  # the server says `running` for up to 3 s after a box has ended
    exit_after_kill: float = 2.0  # for an exit frame after a kill that the box carried out
    backlog_after_end: float = 10.0  # for the backlog of an execution that has ended
    stable_after: float = 5.0  # a socket that lived so long was none of a series that breaks at once
    backlog_silence: float = 0.25  # after which a repetition may be over: the server sends its backlog at once
    backoff: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

    def pause(self, failures: int) -> float:
        return self.backoff[min(failures, len(self.backoff) - 1)]
