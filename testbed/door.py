"""How a command comes to a host: asked for at its door, and started there, as by sshd.

What runs on a host is thus no child of who asked for it, and goes on when that one is killed. The
asker's standard files and variables are the command's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from testbed.enter import door


def listen(host: str) -> socket.socket:
    """Opens the door of a host; what is asked for waits until it is served."""
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    wire.bind(door(host))
    wire.listen(100)
    return wire


def serve(wire: socket.socket) -> NoReturn:
    """Starts what is asked for on this host, for ever."""
    while True:
        asked, _ = wire.accept()
        if os.fork() == 0:
            wire.close()
            try:
                _start(asked)
            finally:
                os._exit(1)
        asked.close()


def _start(asked: socket.socket) -> None:
    """Starts one command, and says how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(asked, 1, 3)
    wanted = json.loads(b"".join(iter(lambda: asked.recv(1 << 20), b"")))
    child = os.fork()
    if child == 0:
        os.setsid()
        for number, descriptor in enumerate(files):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        os.chdir(wanted["folder"])
        line = " ".join(wanted["words"])
        os.execve("/bin/sh", ["/bin/sh", "-c", line], wanted["environment"])
    for descriptor in files:
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Who asked may be gone.
    with suppress(BrokenPipeError):
        asked.sendall(str(code if code >= 0 else 128 - code).encode())
