"""How much memory does one average take beyond the arena, per rank?

Counted over the first average, which loads and compiles what there is to compile, and over later
ones: for each rank the peak of what Python and numpy allocate (tracemalloc); the shared blocks
that the ranks made and keep since before the first (memfds, each once, over all ranks); and, as a
check on what goes past both, the growth of each rank's anonymous memory (RssAnon).
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
_SETTINGS = [
    (2, "2", True),
    (4, "4", True),
    (4, "2+2", True),
    (4, "1+1+1+1", True),
    (4, "4", False),
]


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world(hosts=options["hosts"])
    shared = comm.allocate(COUNT if options["shared"] else 1, np.float32)
    buffer = shared if options["shared"] else np.ones(COUNT, np.float32)
    buffer[...] = 1.0
    blocks = _shared_blocks(comm)
    found = {}
    for name, averages in (("first", 1), ("later", 3)):
        anonymous = _anonymous_bytes()
        tracemalloc.start()
        for _ in range(averages):
            comm.allreduce(buffer, "mean")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        growth = _anonymous_bytes() - anonymous
        peaks, growths = zip(*comm.collect([peak, growth]), strict=True)
        made = (_shared_blocks(comm) - blocks) / comm.size
        found[name] = [value / 2**20 for value in (max(peaks), made, max(growths))]
    return found if comm.rank == 0 else None


def _shared_blocks(comm: localsgd.Communicator) -> int:
    """Bytes of the shared memory that the ranks hold, each block once. Collective."""
    mine: dict[str, int] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry).startswith("/memfd:localsgd"):
                mine[str(entry.stat().st_ino)] = entry.stat().st_size
        except FileNotFoundError:
            continue
    blocks = {block: size for blocks in comm.collect(mine) for block, size in blocks.items()}
    return sum(blocks.values())


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def measure(rounds: int) -> Report:
    """A few averages each; ``rounds`` has no meaning here."""
    question = (__doc__ or "").partition("\n")[0]
    report = Report("extra_memory", f"{question} {COUNT / 1e6} M float32, most of all ranks.")
    columns = ["hosts", "memory", "average", "allocated", "shared blocks", "growth of RssAnon"]
    report.columns = columns
    for ranks, hosts, shared in _SETTINGS:
        options = {"hosts": hosts, "shared": shared}
        found = run_here("benchmarks.extra_memory", ranks, options)
        kind = "arena" if shared else "private"
        for name, values in found.items():
            report.rows.append([hosts, kind, name, *(f"{value:.2f} MiB" for value in values)])
        allocated, made, anonymous = found["later"]
        extra = max(allocated + made, anonymous)
        report.goals.append(
            Goal("extra-memory", f"hosts {hosts}, {kind}", extra, MOST_MIB, False, "MiB")
        )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=1)
