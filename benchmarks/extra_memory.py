"""How much memory does one average take beyond the arena, per rank?

Counted in each rank over its first average: the peak of what Python and numpy allocate
(tracemalloc), the shared blocks that it makes and keeps (its memfds), and, as a check on what goes
past both, the growth of its anonymous memory (RssAnon).
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.report import Goal, Report

COUNT = 25_600_000
MOST_MIB = 4.0
_SETTINGS = [(2, "2", True), (4, "4", True), (4, "2+2", True), (4, "1+1+1+1", True), (4, "4", False)]


def worker(options: Mapping[str, Any]) -> dict[str, float] | None:
    comm = localsgd.world(hosts=options["hosts"])
    shared = comm.allocate(COUNT if options["shared"] else 1, np.float32)
    buffer = shared if options["shared"] else np.ones(COUNT, np.float32)
    buffer[...] = 1.0
    comm.barrier()
    blocks, anonymous = _shared_blocks(), _anonymous_bytes()
    tracemalloc.start()
    comm.allreduce(buffer, "mean")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    mine = [peak, _shared_blocks() - blocks, _anonymous_bytes() - anonymous]
    most = np.max(comm.collect(mine), axis=0) / 2**20
    names = ("allocated", "shared", "anonymous")
    return dict(zip(names, most.tolist(), strict=True)) if comm.rank == 0 else None


def _shared_blocks() -> int:
    """Bytes of the shared memory that this process has made."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry).startswith("/memfd:localsgd"):
                total += entry.stat().st_size
        except OSError:
            continue
    return total


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def measure(rounds: int) -> Report:
    """One average each; ``rounds`` has no meaning here."""
    question = (__doc__ or "").partition("\n")[0]
    report = Report("extra_memory", f"{question} {COUNT / 1e6} M float32, most of all ranks.")
    report.columns = ["hosts", "memory", "allocated", "shared blocks", "growth of RssAnon"]
    for ranks, hosts, shared in _SETTINGS:
        options = {"hosts": hosts, "shared": shared}
        found = run_here("benchmarks.extra_memory", ranks, options)
        kind = "arena" if shared else "private"
        report.rows.append([hosts, kind, *(f"{value:.2f} MiB" for value in found.values())])
        extra = max(found["allocated"] + found["shared"], found["anonymous"])
        report.goals.append(
            Goal("extra-memory", f"hosts {hosts}, {kind}", extra, MOST_MIB, False, "MiB")
        )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=1)
