"""Runs a command on a host of the testbed; the launch agent of the MPI libraries, too.

    enter.py --machine PROCESS HOST PROGRAM ARGUMENT…     from outside
    enter.py HOST WORD…                                   on another host, as ssh would, if the
                                                          network leads there

Run by its path under whatever interpreter: needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# In the memory file system that the hosts of one testbed share.
AGENT = "/dev/shm/agent"
HOLDERS = "/dev/shm/holders"
TEMPORARY = "/dev/shm/tmp"
# Where the ports of all hosts are.
SWITCH = "switch"
# The port of sshd; nobody listens there, and a host that is up says so.
_SSH, _LOST = 22, 255


def main() -> None:
    """Replaces this process by the command, or waits for it where a new process is needed."""
    words = sys.argv[1:]
    folder = os.getcwd()
    if words[0] == "--machine":
        # A process stays in its namespace of processes; its children are in the new one.
        _join(int(words[1]), ("pid", "mnt"))
        child = os.fork()
        if child:
            sys.exit(_wait(child))
        _die_with_parent()
        _enter(words[2], folder)
        os.execvp(words[3], words[3:])
    while words[0].startswith("-"):
        words.pop(0)
    _require_answer(words[0])
    sys.exit(_ask(words[0], folder, words[1:]))


def _enter(host: str, folder: str) -> None:
    holders = json.loads(Path(HOLDERS).read_text())
    if host not in holders:
        sys.exit(f"host must be one of {list(holders)}, got {host!r}")
    _join(holders[host], ("net", "uts", "mnt"))
    os.chdir(folder)


def door(host: str) -> str:
    """Where a host's ``testbed/door.py`` listens."""
    return f"/dev/shm/door-{host}"


def _ask(host: str, folder: str, words: Sequence[str]) -> int:
    """The exit code of a line of the shell on a host; 255 if the host was lost meanwhile.

    Its standard files and variables are those of this process.
    """
    wanted = {"folder": folder, "words": list(words), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.connect(door(host))
        socket.send_fds(wire, [b"."], [0, 1, 2])
        wire.sendall(json.dumps(wanted).encode())
        wire.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: wire.recv(16), b""))
    return int(answer) if answer else _LOST


def kill_all(host: str) -> None:
    """Kills the processes of a host, but for the one that keeps it up."""
    holder = json.loads(Path(HOLDERS).read_text())[host]
    network = os.readlink(f"/proc/{holder}/ns/net")
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        process = int(path.parts[2])
        # It may have ended meanwhile.
        with suppress(OSError):
            if os.readlink(path) == network and process != holder:
                os.kill(process, signal.SIGKILL)


def _require_answer(host: str) -> None:
    """Ends as ssh would, after as long, unless packets go to the host and back."""
    try:
        with socket.create_connection((host, _SSH)):
            pass
    except ConnectionRefusedError:
        pass
    except OSError as error:
        print(f"agent: connect to host {host} port {_SSH}: {error.strerror}", file=sys.stderr)
        sys.exit(_LOST)


def _join(process: int, kinds: Sequence[str]) -> None:
    """Moves this process into namespaces of another."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened = [os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY) for kind in kinds]
    for descriptor in opened:
        if libc.setns(descriptor, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
        os.close(descriptor)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _wait(child: int) -> int:
    """The exit code of a child, which gets the signals that this process is sent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
