"""How the ranks of a new world find out which of them share a host.

Ranks with the same host name, boot and process table are taken to share one; they do only if they
can map each other's memory, which is tried and not assumed.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import get_args

from .contract import Json, Reduction, Transport
from .group import Group
from .homes import Homes
from .meeting import require_equal
from .members import Setting
from .memory import CannotMap, Regions, why_not_shared
from .reduction import ReducingTransport
from .topology import HostsLike, Topology
from .varying import GrowingTransport, JoiningTransport
from .waiting import Clock, Mail, OnLate, Pace, Patience, Strangers, Waiter


def connect(
    transport: Transport,
    *,
    hosts: HostsLike | None = None,
    reduction: Reduction = "exact",
    deadline_s: float | None = None,
    on_late: OnLate | None = None,
    clock: Clock = time.monotonic,
    pace: Pace | None = None,
) -> Group:
    """The group of all ranks of a transport; collective.

    Args:
        hosts: which ranks are to count as sharing a host; None finds out.
        reduction: ``"exact"``, or ``"native"`` for the MPI library's own.
        deadline_s, on_late: how long a rank waits for others, and what it does then; as in
            ``world``.
        clock: seconds.
        pace: has the clock instead, where time is not the machine's.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    if reduction == "native" and not isinstance(transport, ReducingTransport):
        raise ValueError("reduction 'native' needs MPI, got a group without it")
    patience = Patience.of(deadline_s, on_late)
    clock = clock if pace is None else pace.now
    strangers = Strangers(transport.rank, "no word yet", transport.check)
    waiter = Waiter(patience, strangers, clock, None if pace is None else pace.pause)
    mail = Mail(transport, waiter)
    identity = _identity()
    answers = mail.collect([identity, _asked(hosts, transport.size), reduction])
    require_equal([answer[2] for answer in answers], "reduction")
    topology = _settle(answers)
    later = isinstance(transport, JoiningTransport) or (
        isinstance(transport, GrowingTransport) and transport.growable
    )
    setting = Setting(
        patience,
        reduction,
        Regions(transport.rank),
        clock,
        pace=pace,
        identity=identity,
        later=later,
    )
    given = answers[0][1] is not None
    homes = Homes.of(topology) if given else Homes(tuple(answer[0] for answer in answers), False)
    world = range(transport.size)
    try:
        return Group(transport, topology, world, 0, setting, homes)
    except CannotMap as error:
        if transport.rank == 0:
            print(f"localsgd: every rank counts as a host of its own: {error}", file=sys.stderr)
        alone = Topology.of([[rank] for rank in world])
        return Group(transport, alone, world, 0, setting, Homes.of(alone))


def _asked(hosts: HostsLike | None, size: int) -> Json:
    """The hosts that this rank was told of, or what was wrong with them."""
    if hosts is None:
        return None
    try:
        return [list(ranks) for ranks in Topology.parse(hosts, size).hosts]
    except ValueError as error:
        return str(error)


def _identity() -> str:
    """What only processes that can map each other's memory have in common."""
    reason = why_not_shared()
    if reason is not None:
        return f"{reason}; process {socket.gethostname()}:{os.getpid()}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _settle(answers: list[Json]) -> Topology:
    """The topology that all ranks derive from everyone's answers."""
    asked = [answer[1] for answer in answers]
    for rank, answer in enumerate(asked):
        if isinstance(answer, str):
            raise ValueError(f"rank {rank}: {answer}")
        if answer != asked[0]:
            raise ValueError(
                f"hosts must be equal on all ranks, got {asked[0]} on rank 0 and "
                f"{answer} on rank {rank}"
            )
    if asked[0] is not None:
        return Topology.of(asked[0])
    hosts: dict[str, list[int]] = {}
    for rank, answer in enumerate(answers):
        hosts.setdefault(answer[0], []).append(rank)
    return Topology.of(hosts.values())
