"""The first process of a testbed: it makes the hosts, and the kernel ends them with it.

It is process 1 of a namespace of processes, so whatever runs on the hosts, launch daemons and
stray ranks included, dies with it, and then the last of the namespaces with their interfaces,
limits and mounts. It ends when its standard input does, thus with its owner, however that ended.
Nothing has a name outside, so nothing can be left behind.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from testbed import network
from testbed.door import listen, serve
from testbed.enter import AGENT, HOLDERS, SWITCH, TEMPORARY
from testbed.namespaces import (
    NEW_MOUNTS,
    NEW_NAMES,
    NEW_NETWORK,
    NEW_PROCESSES,
    bind,
    die_with_parent,
    make_mounts_private,
    mount,
    unshare,
)


def main() -> None:
    """Makes the testbed that the JSON argument describes, and stays until standard input ends.

    Prints one JSON line: ``{"machine": process}`` or ``{"error": reason}``.
    """
    wanted = json.loads(sys.argv[1])
    try:
        unshare(NEW_PROCESSES | NEW_MOUNTS | NEW_NETWORK | NEW_NAMES)
    except OSError as error:
        _say(error=f"namespaces cannot be made: {error}")
        return
    outside, inside = os.pipe()
    machine = os.fork()
    if machine == 0:
        die_with_parent(signal.SIGKILL)
        _run_machine(wanted["hosts"], wanted["bytes_per_s"], inside)
    os.close(inside)
    problem = b"".join(iter(lambda: os.read(outside, 4096), b"")).decode()
    _say(**({"error": problem} if problem else {"machine": machine}))
    os.waitpid(machine, 0)


def _run_machine(hosts: int, bytes_per_s: float | None, report: int) -> NoReturn:
    """Process 1 inside: makes everything, closes ``report``, waits."""
    # The kernel reaps orphans whose parent ignores their end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        make_mounts_private()
        mount("proc", "/proc")
        mount("tmpfs", "/dev/shm")
        socket.sethostname(SWITCH)
        Path(TEMPORARY).mkdir()
        Path("/dev/shm/hosts").write_text(_hosts_file(hosts))
        bind("/dev/shm/hosts", "/etc/hosts")
        agent = Path(AGENT)
        enter = Path(__file__).with_name("enter.py")
        agent.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(enter)])} "$@"\n')
        agent.chmod(0o755)
        network.make_bridge()
        holders = {SWITCH: os.getpid()}
        holders.update({f"h{host}": _make_host(host, bytes_per_s) for host in range(hosts)})
        for host in range(hosts):
            network.plug_in(host, bytes_per_s)
        Path(HOLDERS).write_text(json.dumps(holders))
    except Exception as error:
        os.write(report, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.close(report)
    while os.read(0, 4096):
        pass
    os._exit(0)


def _make_host(host: int, bytes_per_s: float | None) -> int:
    """Starts the process that holds a host's namespaces; returns it once they are ready.

    Raises:
        RuntimeError: with what went wrong there.
    """
    outside, inside = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            unshare(NEW_MOUNTS | NEW_NETWORK | NEW_NAMES)
            # Programs look here for the interfaces of their own network namespace.
            mount("sysfs", "/sys")
            socket.sethostname(f"h{host}")
            network.make_host_end(host, 1, bytes_per_s)
            # Nobody may wait for the end of a pipe because of this process.
            os.close(0)
            os.closerange(3, inside)
            os.closerange(inside + 1, 1024)
            wire = listen(f"h{host}")
        except Exception as error:
            os.write(inside, f"host h{host}: {type(error).__name__}: {error}".encode())
            os._exit(1)
        os.close(inside)
        serve(wire)
    os.close(inside)
    problem = b"".join(iter(lambda: os.read(outside, 4096), b"")).decode()
    os.close(outside)
    if problem:
        raise RuntimeError(problem)
    return holder


def _hosts_file(hosts: int) -> str:
    lines = [f"{network.address(host)} h{host}" for host in range(hosts)]
    return "\n".join([f"127.0.0.1 localhost {SWITCH}", *lines, ""])


def _say(**words: object) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main()
