"""How fast this machine's or cluster's all-reduces are, level by level.

The ranks of a host reduce among themselves, in the memory that they share; then the first rank of
every host with those of the others; then all of them, to see whether the levels explain the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.memory import available_bytes
from localsgd.simulate.machine import Level, Machine

_SMALLEST_BYTES = 4_096
_LEAST_CALLS, _MOST_CALLS, _LONG_ENOUGH_S = 5, 200, 0.3


def measure(
    comm: Communicator,
    *,
    largest_bytes: int = 64 << 20,
    report: Callable[[str], None] = lambda _: None,
) -> Machine:
    """Measures both levels of a group's hosts. Collective; takes a few seconds.

    Args:
        comm: at least two workers, all of them otherwise idle.
        largest_bytes: of an all-reduce, at least 64 KiB; each rank allocates that much memory.
        report: told what begins, on every rank.

    Returns:
        The same on every rank.

    Raises:
        ValueError: for a group of one, or payloads too small.
    """
    if comm.size < 2:
        raise ValueError(f"there must be at least 2 workers to measure, got {comm.size}")
    if largest_bytes < 16 * _SMALLEST_BYTES:
        raise ValueError(
            f"largest_bytes must be at least {16 * _SMALLEST_BYTES}, got {largest_bytes}"
        )
    # What a fit says of long payloads must not come from what caches hold.
    sizes = (_SMALLEST_BYTES, largest_bytes // 2, largest_bytes)
    hosts = comm.topology.hosts
    home = comm.topology.host_of[comm.rank]
    report("memory within hosts")
    levels = []
    # Of uneven hosts the largest is what a round waits for.
    largest = max(range(len(hosts)), key=lambda host: len(hosts[host]))
    if len(hosts[largest]) > 1:
        within = comm.split(home)
        levels.append(_level("host", within, sizes, comm, hosts[largest][0]))
        within.close()
    report("links between hosts")
    if len(hosts) > 1:
        first = comm.split(0 if comm.rank == hosts[home][0] else None)
        levels.append(_level("between", first, sizes, comm, 0))
        if first is not NON_MEMBER:
            first.close()
    report("all workers")
    seconds = _seconds(comm, largest_bytes)
    return Machine(
        tuple(len(ranks) for ranks in hosts),
        tuple(levels),
        largest_bytes,
        seconds,
        min(comm.collect(available_bytes())),
    )


def _level(
    name: str, group: Communicator, sizes: Sequence[int], comm: Communicator, teller: int
) -> Level:
    """What a group measures, as rank ``teller`` of all has it, on every rank."""
    measured = None if group is NON_MEMBER else [_seconds(group, size) for size in sizes]
    told = comm.collect([group.size, measured] if group is not NON_MEMBER else None)[teller]
    return Level(name, told[0], tuple(sizes), tuple(told[1]))


def _seconds(group: Communicator, payload_bytes: int) -> float:
    """The median over calls of what the slowest rank took; equal on all ranks."""
    buffer = group.allocate(payload_bytes // 4, np.float32)
    buffer[:] = group.rank
    group.allreduce(buffer, "mean")
    once = _slowest(group, [_timed(group, buffer)])[0]
    calls = int(min(max(_LONG_ENOUGH_S / once, _LEAST_CALLS), _MOST_CALLS))
    times = _slowest(group, [_timed(group, buffer) for _ in range(calls)])
    return float(np.median(times))


def _timed(group: Communicator, buffer: Array) -> float:
    group.barrier()
    begin = time.perf_counter()
    group.allreduce(buffer, "mean")
    return time.perf_counter() - begin


def _slowest(group: Communicator, times: Sequence[float]) -> Array:
    slowest = np.array(times)
    group.allreduce(slowest, "max")
    return slowest
