"""On one host: does the time per rank and byte grow with the number of ranks?

A copy of the buffer by every rank at once shows how much of that is the machine's: with few ranks
their buffers stay in the cache of the last level, and with many they do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import Spread, Times, in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report, shown

COUNT, RANKS, JOBS = 4_000_000, (2, 4, 8, 16), 2
COPY = "memcpy of the buffer by every rank, and a barrier"
# What two runs of one thing differ by.
NOISE = 1.1


def worker(options: Mapping[str, Any]) -> Times | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0
    source, target = np.ones(COUNT, np.float32), np.zeros(COUNT, np.float32)

    def copy() -> None:
        np.copyto(target, source)
        # Ranks that take turns on a core begin to count late, and would count their own copy alone.
        comm.barrier()

    ways = {OURS: lambda: comm.allreduce(shared, "mean"), COPY: copy}
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    question = (__doc__ or "").partition("\n")[0]
    report = Report("host_scale", f"{question} {COUNT / 1e6} M float32.")
    report.columns = ["ranks", "what", "median", "quartiles", "per rank and byte", "to 2 ranks"]
    times: dict[tuple[str, int], list[float]] = {
        (way, ranks): [] for way in (OURS, COPY) for ranks in RANKS
    }
    for _ in range(JOBS):
        for ranks in RANKS:
            found = run_here("benchmarks.host_scale", ranks, {"rounds": rounds})
            for way, seconds in found.items():
                times[way, ranks] += seconds
    spreads = {key: Spread.of(seconds) for key, seconds in times.items()}
    per_byte = {key: spread.median / key[1] / (4 * COUNT) for key, spread in spreads.items()}
    for (way, ranks), spread in spreads.items():
        mine = per_byte[way, ranks]
        quartiles = f"{shown(spread.low)} - {shown(spread.high)}"
        growth = f"{mine / per_byte[way, 2]:.2f}"
        cells = [str(ranks), way, shown(spread.median), quartiles, f"{mine * 1e12:.3g} ps", growth]
        report.rows.append(cells)
    worst = max(RANKS[1:], key=lambda ranks: per_byte[OURS, ranks])
    ratio = per_byte[OURS, worst] / per_byte[OURS, 2]
    unit = "times that of 2 ranks"
    report.goals.append(Goal("host-scale", f"{worst} ranks", ratio, NOISE, False, unit))
    copies = per_byte[COPY, worst] / per_byte[COPY, 2]
    report.notes.append(f"A copy by every rank takes {copies:.2f} times that of 2 ranks there.")
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
