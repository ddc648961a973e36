"""Between two hosts: how much of a background round is hidden behind computation?

A round alone takes R, computation alone C, the round started before the computation and waited for
after it B; hidden is (R + C - B) / R. The computation takes somewhat longer than the round.

A round takes processor time itself, and where the computation leaves no core idle that cannot be
hidden. It is measured of rounds behind nothing, without what the kernel does for no process. The
same bytes over plain sockets, which nobody sums, show how much could be hidden at all.

A computation on an accelerator leaves the cores free: the program waits until its device is done.
Such a wait stands in for it, of the same length.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.between_hosts import COUNT, RATE_GBIT
from benchmarks.jobs import pythons, run_on_hosts, script
from benchmarks.measure import Spread, in_turn_on_all_ranks
from benchmarks.report import Goal, Report, shown
from benchmarks.sockets import Exchange
from testbed import NotAvailable

ROUND, COMPUTE, BOTH = "round alone", "computation alone", "round behind computation"
DEVICE, DEVICE_BOTH = "wait for a device alone", "round behind wait for a device"
BARE, BARE_BOTH = "its bytes over sockets", "its bytes over sockets, behind computation"
LEAST, LEAST_FREE = 0.9, 0.95
CORES = len(os.sched_getaffinity(0))
_LONGER = 1.5


def worker(options: Mapping[str, Any]) -> dict[str, Any] | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0

    def average() -> None:
        comm.allreduce(shared, "mean")

    average()
    average_s = in_turn_on_all_ranks({ROUND: average}, 3)[ROUND]
    seconds = _LONGER * sorted(average_s)[1]
    multiply = _computation(seconds)

    def wait_for_device() -> None:
        time.sleep(seconds)

    def behind(computation: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            request = comm.start(lambda group: group.allreduce(shared, "mean"))
            computation()
            request.wait()

        return both

    bare = Exchange(comm, 2 * shared.nbytes // comm.size)

    def bare_both() -> None:
        wait = bare.start()
        multiply()
        wait()

    ways = {
        ROUND: average,
        COMPUTE: multiply,
        BOTH: behind(multiply),
        DEVICE: wait_for_device,
        DEVICE_BOTH: behind(wait_for_device),
        BARE: lambda: bare.start()(),
        BARE_BOTH: bare_both,
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    begin = _processor_s()
    for _ in range(options["rounds"]):
        comm.start(lambda group: group.allreduce(shared, "mean")).wait()
    spent = sum(comm.collect(_processor_s() - begin)) / options["rounds"]
    return {"times": times, "spent": spent} if comm.rank == 0 else None


def _processor_s() -> float:
    """Seconds that all threads of this process have run, in the kernel and outside."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _computation(seconds: float) -> Callable[[], None]:
    """Matrix products, as in a training step, that take about so long on this machine."""
    left, right = np.ones((2, 32, 1024), np.float32), np.ones((1024, 1024), np.float32)
    result = np.empty_like(left)

    def multiply(times: int) -> None:
        for _ in range(times):
            np.matmul(left, right, out=result)

    multiply(10)
    begin = time.perf_counter()
    multiply(50)
    times = max(1, round(50 * seconds / (time.perf_counter() - begin)))
    return lambda: multiply(times)


def _hidden(
    spreads: Mapping[str, Spread], alone: str, behind: str, computation: str = COMPUTE
) -> float:
    """The share of what runs alone that is hidden when it runs behind the computation."""
    saved = spreads[alone].median + spreads[computation].median - spreads[behind].median
    return saved / spreads[alone].median


def measure(rounds: int) -> Report:
    question = (__doc__ or "").partition("\n")[0]
    report = Report("overlap", f"{question} 16 MB, {RATE_GBIT:g} Gbit/s per host.")
    unit = "of the round hidden"
    for library in pythons():
        for layout in ((1, 1), (2, 2)):
            setting = f"{library}, 2x{layout[0]}"
            options = {"rounds": rounds}
            try:
                found = run_on_hosts("benchmarks.overlap", layout, RATE_GBIT, options, library)
            except NotAvailable as reason:
                report.goals.append(Goal("overlap", setting, None, LEAST, True, unit, str(reason)))
                return report
            spreads = report.add_times(setting, found["times"], ROUND)
            hidden = _hidden(spreads, ROUND, BOTH)
            report.goals.append(Goal("overlap", setting, hidden, LEAST, True, unit))
            free = _hidden(spreads, ROUND, DEVICE_BOTH, DEVICE)
            report.goals.append(Goal("overlap-free", setting, free, LEAST_FREE, True, unit))
            share = found["spent"] / (CORES * spreads[ROUND].median)
            report.notes.append(
                f"{setting}: a round behind nothing takes {shown(found['spent'])} of processor "
                f"time on all ranks, {share:.2f} of what {CORES} cores offer meanwhile. Of its "
                f"bytes over sockets {_hidden(spreads, BARE, BARE_BOTH):.2f} were hidden."
            )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=11)
