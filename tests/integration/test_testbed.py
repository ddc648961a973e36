"""The testbed itself: its links keep their rate, and nothing of it outlives its owner."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.on_hosts import ROOT, hosts_up
from testbed import Hosts

# Sends 8 MB from h0 to h1 and says how long it took.
_RECEIVE = """
import socket, time
with socket.create_server(("h1", 5000)) as server:
    print("ready", flush=True)
    wire, _ = server.accept()
    begin, left = time.monotonic(), 8_000_000
    while left:
        left -= len(wire.recv(1 << 20))
    print(time.monotonic() - begin)
"""
_SEND = """
import socket
socket.create_connection(("h1", 5000)).sendall(bytes(8_000_000))
"""

# Makes hosts, starts a job on them that never ends, and says so.
_OWNER = """
import sys
from testbed import Hosts
with Hosts([1, 1]) as hosts:
    print(hosts.machine, flush=True)
    forever = "import threading; threading.Event().wait()"
    hosts.run_on(1, [sys.executable, "-c", forever], timeout_s=600)
"""


def _processes_of(machine: int) -> list[int]:
    """The processes in the namespace whose process 1 is ``machine``."""
    try:
        namespace = os.readlink(f"/proc/{machine}/ns/pid")
    except OSError:
        return []
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/pid"):
        try:
            if os.readlink(path) == namespace:
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


def _all_end_within(seconds: float, handles: list[int]) -> bool:
    """Whether the processes end in time: the descriptor of one that has is readable."""
    poller = select.poll()
    for handle in handles:
        poller.register(handle, select.POLLIN)
    left, deadline = set(handles), time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        for handle, _ in poller.poll(1000 * max(deadline - time.monotonic(), 0)):
            poller.unregister(handle)
            os.close(handle)
            left.discard(handle)
    return not left


def test_a_link_carries_no_more_than_its_rate() -> None:
    """8 MB less the burst of 512 kB at 0.2 Gbit/s take at least 0.3 s."""
    with hosts_up([1, 1], rate_gbit=0.2) as hosts:
        receiver = subprocess.Popen(
            hosts.command_on(1, [sys.executable, "-c", _RECEIVE]), stdout=subprocess.PIPE, text=True
        )
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        sender = hosts.run_on(0, [sys.executable, "-c", _SEND], timeout_s=30)
        said, _ = receiver.communicate(timeout=30)
    assert sender.returncode == 0, sender.stderr
    assert float(said) >= (8e6 - 512 * 1024) * 8 / 0.2e9 * 0.95


def test_the_machine_sees_nothing_of_the_hosts() -> None:
    before = socket.if_nameindex(), Path("/etc/hosts").read_text(), socket.gethostname()
    with hosts_up([1, 1]):
        during = socket.if_nameindex(), Path("/etc/hosts").read_text(), socket.gethostname()
    assert during == before


def test_a_killed_owner_leaves_nothing_behind() -> None:
    with hosts_up([1]):
        pass
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    machine = int(owner.stdout.readline())
    handles = [os.pidfd_open(pid) for pid in _processes_of(machine)]
    assert handles
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    # The kernel lets process 1 end last, so nothing started meanwhile outlives it.
    assert _all_end_within(10.0, handles)


@pytest.mark.long
def test_a_job_that_takes_too_long_is_ended_with_its_output_kept() -> None:
    with hosts_up([1]) as hosts:
        with pytest.raises(subprocess.TimeoutExpired) as raised:
            hosts.run_on(0, ["sh", "-c", "echo begun; exec sleep 600"], timeout_s=5.0)
        assert raised.value.output == "begun\n"


def test_hosts_without_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1 rank, got \[2, 0\]"):
        Hosts([2, 0])
