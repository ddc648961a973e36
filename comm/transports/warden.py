"""A process beside a rank, that kills it when it is stopped.

Neighbours of its host do, when they have waited for it in vain; but they may be stopped, too, and
from other hosts nobody can. Linux alone says which processes are stopped; elsewhere there is no
warden.
"""

from __future__ import annotations

import os
import subprocess
import sys

# Sees a process that is stopped at every look, so that one that goes on in between is let be; and
# a pause of the warden's own, as when a machine sleeps, is no pause of the rank's.
_PROGRAM = """
import ctypes, os, signal, sys, time
rank, patience_s = int(sys.argv[1]), float(sys.argv[2])
look_s = min(0.5, patience_s / 20)
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
stopped_s, seen = 0.0, time.monotonic()
while os.getppid() == rank:
    time.sleep(look_s)
    with open(f"/proc/{rank}/stat") as stat:
        state = stat.read().rpartition(")")[2].split()[0]
    now = time.monotonic()
    stopped_s = stopped_s + min(now - seen, 4 * look_s) if state == "T" else 0.0
    seen = now
    if stopped_s >= patience_s:
        os.kill(rank, signal.SIGKILL)
        break
"""

_WARDENS: list[subprocess.Popen[bytes]] = []


def watch(patience_s: float) -> None:
    """Has this process killed once it has been stopped for so long."""
    if _WARDENS or sys.platform != "linux":
        return
    _WARDENS.append(
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), repr(patience_s)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )


def leave() -> None:
    """Ends the warden, if there is one."""
    while _WARDENS:
        warden = _WARDENS.pop()
        warden.kill()
        warden.wait()
