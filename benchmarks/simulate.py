"""Is a simulation fast, has it the bits of mpirun, and does it tell the time of real hosts?"""

from __future__ import annotations

import hashlib
import importlib
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import ROOT, run_alone, run_here, run_on_hosts, script
from benchmarks.report import Goal, Report
from localsgd import Arena, Communicator, LocalSGD, optim
from localsgd.simulate import simulate
from testbed import NotAvailable

WORKERS, STEPS, PERIOD, HIDDEN = 256, 1_000, 50, 720
BITS = ("1+1", "2+1", "2+2", "4", "4+4")
HOSTS, RATES_GBIT = ((2, 2), (1, 1, 1, 1), (2, 2, 2, 2)), (0.1, 0.2, 0.5)
COUNT, CALLS = 1_000_000, 5
# The memory of this machine, and what a message takes beside its bytes: not what is compared.
HOST, LATENCY = "host=8GB/s,20us", "100us"


def scale() -> list[float]:
    """Seconds and GiB of a model of 100 k parameters on all workers, 8 samples a step."""
    draws = np.random.default_rng(0)
    samples = draws.standard_normal((4096, 128), np.float32)
    labels = draws.integers(0, 10, 4096)

    def train(comm: Communicator) -> None:
        first, mine = np.random.default_rng(1), np.random.default_rng(comm.rank)
        w1 = 0.05 * first.standard_normal((128, HIDDEN), np.float32)
        w2 = 0.05 * first.standard_normal((HIDDEN, 10), np.float32)
        params = Arena({"w1": w1, "b": np.zeros(HIDDEN, np.float32), "w2": w2}, comm)
        training = LocalSGD(optim.SGD(params, lr=0.05), period=PERIOD, comm=comm)
        for _ in range(STEPS):
            drawn = mine.integers(0, 4096, 8)
            hidden = np.maximum(samples[drawn] @ params["w1"] + params["b"], 0)
            errors = np.exp(hidden @ params["w2"])
            errors /= errors.sum(1, keepdims=True)
            errors[np.arange(8), labels[drawn]] -= 1
            back = (errors @ params["w2"].T) * (hidden > 0)
            np.matmul(hidden.T, errors / 8, out=params.grad["w2"])
            np.matmul(samples[drawn].T, back / 8, out=params.grad["w1"])
            params.grad["b"][...] = back.sum(0) / 8
            training.step()

    begin = time.perf_counter()
    network = "host=50GB/s,1us; wan=100Mbit/s,50ms"
    simulate(train, workers=WORKERS, hosts="32x8", network=network, step_time_s=0.01)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [time.perf_counter() - begin, peak / 2**30]


def digests(comm: Communicator) -> list[str]:
    """Of this rank's parameters after nine steps with every averager of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    kinds = importlib.import_module("averager_kinds")

    found = []
    for kind in kinds.KINDS.values():
        params = kinds.arenas(comm)
        averager = kind.make(comm)
        averager.begin(params)
        kinds.train(kind, averager, params, range(1, 10))
        content = b"".join(arena.flat.tobytes() for arena in params)
        found.append(hashlib.sha256(content).hexdigest())
    return found


def rounds(comm: Communicator) -> float:
    """Seconds of a round of ``COUNT`` numbers, the median."""
    buffer, times = comm.allocate(COUNT, np.float32), []
    for _ in range(CALLS):
        comm.barrier()
        begin = time.perf_counter()
        comm.allreduce(buffer, "mean")
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def worker(options: Mapping[str, Any]) -> object:
    if options["part"] == "scale":
        return scale()
    comm = localsgd.world(hosts=options["hosts"])
    found = comm.collect(digests(comm) if options["part"] == "bits" else rounds(comm))
    return found if comm.rank == 0 else None


def differing(layout: str) -> float:
    """How many digests of a job of mpirun are others than the simulation's."""
    size = sum(map(int, layout.split("+")))
    real = run_here("benchmarks.simulate", size, {"part": "bits", "hosts": layout})
    network = f"{HOST}; wan=1Gbit/s,{LATENCY}"
    mine = simulate(digests, workers=size, hosts=layout, network=network).results
    return float(np.sum(np.array(real) != np.array(mine)))


def off(hosts: tuple[int, ...], rate_gbit: float) -> tuple[float, float]:
    """Predicted and measured seconds of a round on hosts of a testbed."""
    options = {"part": "time", "hosts": None}
    measured = max(run_on_hosts("benchmarks.simulate", hosts, rate_gbit, options))
    layout = "+".join(map(str, hosts))
    network = f"{HOST}; wan={rate_gbit}Gbit/s,{LATENCY}"
    found = simulate(rounds, workers=sum(hosts), hosts=layout, network=network, step_time_s=0.0)
    times = [held.end_s - held.met_s for held in found.rounds]
    return statistics.median(times), measured


def measure(rounds: int) -> Report:
    report = Report("simulate", __doc__ or "")
    for layout in BITS:
        setting = f"every averager, layout {layout}"
        goal = Goal("simulate-bits", setting, differing(layout), 0, False, "other digests")
        report.goals.append(goal)
    for hosts in HOSTS:
        for rate_gbit in RATES_GBIT:
            setting = f"hosts {'+'.join(map(str, hosts))}, {rate_gbit} Gbit/s"
            try:
                predicted, measured = off(hosts, rate_gbit)
            except NotAvailable as reason:
                value, words = None, str(reason)
            else:
                value, words = 100 * abs(predicted / measured - 1), ""
                setting += f", {1e3 * predicted:.0f} ms for {1e3 * measured:.0f} ms"
            report.goals.append(Goal("simulate-time", setting, value, 20, False, "% off", words))
    if rounds:
        seconds, memory = run_alone("benchmarks.simulate", {"part": "scale"})
        setting = f"{WORKERS} workers, {STEPS} steps, period {PERIOD}"
        report.goals.append(Goal("simulate-scale", setting, seconds, 300, False, "s"))
        report.goals.append(Goal("simulate-scale", setting, memory, 4, False, "GiB"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=1)
