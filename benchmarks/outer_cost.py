"""On one host: what does a DiLoCo round cost against a plain average, and how much memory?

The anchor and the momentum are sharded, so with n ranks each holds 2/n of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report
from localsgd import Arena, ModelAverager, every, outer

COUNT = 25_600_000
PLAIN = "plain average"
_MOST = {2: 1.5, 4: 1.8}
_EXTRA_MIB = 4.0


def worker(options: Mapping[str, Any]) -> dict[str, Any] | None:
    comm = localsgd.world()
    arenas = [Arena({"w": np.ones(COUNT, np.float32)}, comm, grad=False) for _ in range(2)]
    plain = ModelAverager(every(1), comm)
    diloco = ModelAverager(every(1), comm, outer=outer.SGD(0.7, momentum=0.9, nesterov=True))
    diloco.begin(arenas[0])
    saved = diloco.state_dict()["outer"]["arrays"]
    kept = sum(array.nbytes for arrays in saved for array in arrays.values()) / 2**20
    del saved
    ways = {
        OURS: lambda: diloco.average_parameters(arenas[0]),
        PLAIN: lambda: plain.average_parameters(arenas[1]),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    most = max(comm.collect(kept))
    return {"times": times, "kept_mib": most} if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("outer_cost", f"{(__doc__ or '').splitlines()[0]} {COUNT / 1e6} M float32.")
    model = COUNT * 4 / 2**20
    for ranks, most in _MOST.items():
        found = run_here("benchmarks.outer_cost", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", found["times"], baseline=PLAIN)
        ratio = spreads[OURS].median / spreads[PLAIN].median
        report.goals.append(
            Goal("outer-cost", f"{ranks} ranks", ratio, most, False, "times an average")
        )
        if ranks == 4:
            wanted = model * 2 / ranks + _EXTRA_MIB
            report.goals.append(
                Goal("outer-memory", f"{ranks} ranks", found["kept_mib"], wanted, False, "MiB")
            )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=31)
