"""What do rounds without a barrier gain and cost: waits, the owners' share, quality, replays?"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from digits import accuracy, add_gradient, batches, read_digits, start_values

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.report import Goal, Report
from localsgd import Arena, Communicator, DecoupledDiLoCo, DiLoCo, Quorum, StreamingDiLoCo, optim

RANKS, COUNT, STEP_S, SLOWER, SECONDS = 4, 100_000, 0.02, 4.0, 8.0
PERIOD, FRAGMENTS, EPOCHS = 16, 2, 40
OUTER: dict[str, Any] = {"outer_lr": 0.7, "outer_momentum": 0.5}


def worker(options: Mapping[str, Any]) -> Any:
    comm = localsgd.world()
    if options["what"] == "waiting":
        return comm.collect(steps_per_s(comm, options["way"]))
    return comm.collect(trained(comm, **options["training"]))


def steps_per_s(comm: Communicator, way: str) -> float:
    """This worker's steps by second, each of which waits, as for a device; rank 0 is slow."""
    arena = Arena({name: np.ones(COUNT // 4, np.float32) for name in "abcd"}, comm)
    inner = optim.SGD(arena, lr=0.1)
    training: Any = inner
    if way == "decoupled":
        training = DecoupledDiLoCo(inner, PERIOD, FRAGMENTS, quorum=Quorum(3, margin=0.5))
    elif way == "a barrier":
        training = DiLoCo(inner, PERIOD, comm=comm)
    step_s, steps = STEP_S * (1.0 if comm.rank else SLOWER), 0
    comm.barrier()
    begin = time.monotonic()
    until = begin + SECONDS
    # With a barrier all must take equally many steps.
    wanted = int(SECONDS / (STEP_S * SLOWER)) if way == "a barrier" else None
    while time.monotonic() < until if wanted is None else steps < wanted:
        time.sleep(step_s)
        arena.grad.flat[...] = arena.flat
        training.step()
        steps += 1
    found = steps / (time.monotonic() - begin)
    if way == "decoupled":
        training.flush()
    return found


def trained(
    comm: Communicator, way: str, seed: int, log: str | None = None, replay: str | None = None
) -> dict[str, Any]:
    """Digits: the held-out accuracy, a digest of the model, and processor times in seconds."""
    learn, held_out = read_digits()
    arena = Arena(start_values(seed), comm)
    inner = optim.SGD(arena, lr=0.05, momentum=0.9)
    training: Any
    if way == "decoupled":
        training = DecoupledDiLoCo(
            inner,
            PERIOD,
            FRAGMENTS,
            quorum=Quorum(3, margin=0.5),
            log=log,
            replay=replay,
            **OUTER,
        )
    else:
        training = StreamingDiLoCo(inner, PERIOD, FRAGMENTS, **OUTER)
    begin = time.process_time()
    for epoch in range(EPOCHS):
        for batch in batches(learn, comm, seed, epoch):
            add_gradient(arena, batch)
            training.step()
    part = getattr(training.averager, "part", None)
    owning_s = part.owner.seconds if part is not None else 0.0
    training.flush()
    return {
        "accuracy": accuracy(dict(arena), held_out),
        "digest": hashlib.sha256(arena.flat.tobytes()).hexdigest(),
        "owning_s": owning_s,
        "merges": part.owner.merges if part is not None else 0,
        "process_s": time.process_time() - begin,
    }


def _job(**training: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_here(
        "benchmarks.decoupled", RANKS, {"what": "training", "training": training}
    )
    return found


def measure(rounds: int) -> Report:
    report = Report(
        "decoupled",
        f"{__doc__} {RANKS} workers on one host. Waiting: {COUNT / 1e6:g} M float32, steps of "
        f"{STEP_S} s, of one worker {SLOWER:g} times as long, for {SECONDS:g} s. The rest: digits, "
        f"{EPOCHS} epochs, a period of {PERIOD}, {FRAGMENTS} fragments, no faults.",
    )
    report.columns = ["what", "found"]
    rates: dict[str, float] = {}
    for way in ("alone", "decoupled", "a barrier"):
        options = {"what": "waiting", "way": way}
        rates[way] = sum(run_here("benchmarks.decoupled", RANKS, options))
        report.rows.append([f"steps a second of all, {way}", f"{rates[way]:.1f}"])
    scores: dict[str, list[float]] = {"decoupled": [], "streaming": []}
    owning_s = process_s = 0.0
    equal = 0
    for seed in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = _job(way="decoupled", seed=seed, log=folder)
            again = _job(way="decoupled", seed=seed, replay=folder)
        equal += len({one["digest"] for one in [*run, *again]}) == 1
        scores["decoupled"].append(run[0]["accuracy"])
        scores["streaming"].append(_job(way="streaming", seed=seed)[0]["accuracy"])
        owning_s += sum(one["owning_s"] for one in run)
        process_s += sum(one["process_s"] for one in run)
    means = {way: float(np.mean(found)) for way, found in scores.items()}
    for way, mean in means.items():
        spread = float(np.std(scores[way]))
        report.rows.append([f"digits read right, {way}", f"{mean:.2f} % (sd {spread:.2f})"])
    report.rows.append(["merges of one run", str(sum(one["merges"] for one in run))])
    setting = f"{RANKS} ranks"
    lost = 100 * (1 - means["decoupled"] / means["streaming"])
    report.goals += [
        Goal("no-wait", setting, rates["decoupled"] / rates["alone"], 0.97, True, "of alone"),
        Goal("owner-cost", setting, 100 * owning_s / process_s, 3.0, False, "%"),
        Goal("replay", f"{setting}, {rounds} runs", equal / rounds, 1.0, True, "equal"),
        Goal("quality", f"digits, {setting}, {rounds} seeds", lost, 0.5, False, "% lost"),
    ]
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=20)
