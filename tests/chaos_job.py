"""A training in which workers meet what a plan has for them; run by ``chaos.py``.

python chaos_job.py PLAN: a JSON file with the folder, the steps, and the faults by worker and step.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import localsgd
from localsgd import (
    Arena,
    CheckpointError,
    Checkpoints,
    Communicator,
    ModelAverager,
    OverlappedAverager,
    PostLocalSGDOptimizer,
    ShardSampler,
    StreamingAverager,
    Survival,
    every,
    gossip,
    optim,
    outer,
)

DEADLINE_S = 3.0
# No job takes so long: one that does says where each of its ranks stands.
SAYS_AFTER_S = 40.0
COUNT = 20_000
# Between two rounds and checkpoints; in the mean of one; behind a checkpoint; when another is lost.
MOMENTS = ("between", "in a pass", "while saving", "in a recovery")
AVERAGERS = ("plain", "streaming", "delayed", "gossip")
# What a thread can do to its process.
ENDS_OF_A_THREAD = ("killed", "stopped", "a bad address")
ENDS = ("killed", "stopped", "a bad address", "an error", "the end")


@dataclass
class Fate:
    """What this worker meets.

    Attributes:
        step: before which step; None: none.
        armed: whether it strikes at its moment now.
    """

    folder: Path
    number: int
    step: int | None = None
    kind: str = ""
    moment: str = ""
    armed: bool = False
    rounds: list[float] = field(default_factory=list)

    def arm(self, step: int) -> None:
        """Strikes if it is time and the moment is between two calls."""
        if step == self.step:
            self.armed = True
            self.meet("between")
            if self.moment == "while saving":
                delay_s = np.random.default_rng(step).uniform(0, 0.01)
                threading.Timer(delay_s, lambda: self.meet("while saving")).start()

    def meet(self, moment: str) -> None:
        if not self.armed or moment != self.moment:
            return
        if self.number >= 1000:
            # One of them alone.
            try:
                (self.folder / "struck-new").touch(exist_ok=False)
            except FileExistsError:
                return
        else:
            (self.folder / f"struck-{self.number}").write_text(repr(time.time()))
        sys.stdout.flush()
        match self.kind:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "a bad address":
                ctypes.string_at(0)
            case "an error":
                raise KeyError("no such batch")
            case "the end":
                sys.exit(3)

    def regroup(self) -> None:
        self.meet("in a recovery")


class Outer(outer.SGD):
    """Nesterov's step, in which a worker may meet its fate."""

    def __init__(self, fate: Fate) -> None:
        super().__init__(0.7, momentum=0.9, nesterov=True)
        self._fate = fate

    def scalar_step(self) -> None:
        return None

    def update(self, block: outer.Block) -> None:
        super().update(block)
        self._fate.meet("in a pass")


class Mixing(gossip.GossipAverager):
    """D-PSGD, in whose mixing a worker may meet its fate."""

    fate: Fate

    def _mix(self, index: int, arena: Any, neighbours: Any) -> None:
        super()._mix(index, arena, neighbours)
        self.fate.meet("in a pass")


def averager_of(kind: str, comm: Communicator, fate: Fate) -> ModelAverager:
    """Something begins after steps 3, 6, 9 and 12."""
    match kind:
        case "plain":
            return ModelAverager(every(3), comm, outer=Outer(fate))
        case "streaming":
            return StreamingAverager(6, 2, comm, outer=Outer(fate), delay=2, mixing=0.5)
        case "delayed":
            return OverlappedAverager(3, 2, comm, outer=Outer(fate))
    averager = Mixing(every(3), gossip.ring(), comm)
    averager.fate = fate
    return averager


def fails_to_save(saves: Checkpoints, step: int, no_room: Callable[[], Any]) -> bool:
    """Whether a checkpoint fails for which some workers have no room on the disk."""
    saves.wait()
    with no_room():
        try:
            saves.save(step)
            saves.wait()
        except CheckpointError:
            return True
    return False


@contextmanager
def no_room_for_one(is_full: bool) -> Iterator[None]:
    """This worker cannot write, as if its disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if is_full else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_room_for_all(comm: Communicator, folder: Path, fills: bool) -> Iterator[None]:
    """The disk is full, since one has filled it."""
    filler = folder / "filler"
    try:
        if fills:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        comm.barrier()
        yield
    finally:
        if fills:
            filler.unlink()


def work(plan: dict[str, Any], comm: Communicator) -> dict[str, Any]:
    folder, workers = Path(plan["folder"]), plan.get("workers", 0)
    # Workers that are started later have numbers of their own, and may be struck as they join.
    number = 1000 + os.getpid() if comm.joining else comm.rank
    mine = plan["faults"].get("new" if comm.joining else str(number), {})
    fate = Fate(folder, number, **mine)
    fate.armed = comm.joining
    arena = Arena({"w": np.full(COUNT, 5.0, np.float32), "b": np.ones(7)[:3].astype("f4")}, comm)
    averager = averager_of(plan["averager"], comm, fate)
    training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1, momentum=0.5), averager)
    sampler = ShardSampler(1000, 2, seed=0, comm=comm)
    noise = np.random.default_rng(number)
    parts = {"params": arena, "training": training, "sampler": sampler, "noise": noise}
    saves = Checkpoints(folder / "saves", parts, comm, when=every(4), keep=2)
    survival = Survival(training, sampler, saves, fate)
    start = step = averager.step if survival.joined else saves.load() or 0
    losses, full, room = [], False, plan["full"]
    batches = iter(sampler)
    while step < plan["steps"] or comm.size < workers:
        batch = next(batches, None)
        if batch is None:
            batches = iter(sampler)
            batch = next(batches)
        step += 1
        fate.arm(step)
        losses.append(float(np.square(arena.flat).mean()))
        arena.grad.flat[...] = arena.flat + noise.normal(size=arena.flat.size, scale=0.1)
        arena.grad.flat[: len(batch)] += batch % 2
        held = averager.rounds
        training.step()
        if averager.rounds > held:
            fate.rounds.append(time.time())
        # What is on its way in the background is left alone otherwise.
        if workers or saves.when.due(step):
            survival.hold(lambda: saves.after(step))  # noqa: B023
        if room and step == room["step"]:
            affected = number in room["workers"]
            no_room = partial(no_room_for_one, affected)
            if room["disk"]:
                no_room = partial(no_room_for_all, comm, folder / "saves", affected)
            full = survival.hold(lambda: fails_to_save(saves, step, no_room))  # noqa: B023
        if step == plan["waits"] and os.environ.get("LOCALSGD_RESTART") == "0":
            saves.wait()
            comm.barrier()
            (folder / "waiting").touch()
            while True:
                comm.barrier()
    training.flush()
    saves.close()
    return {
        "number": number,
        "start": start,
        "steps": averager.step,
        "size": comm.size,
        "lost": survival.lost,
        "full": full,
        "losses": [losses[0], losses[-1]] if losses else [1.0, 0.0],
        "rounds": fate.rounds,
        "digest": hashlib.sha256(arena.flat).hexdigest(),
    }


def main(path: str) -> None:
    plan = json.loads(Path(path).read_text())
    faulthandler.dump_traceback_later(SAYS_AFTER_S)
    comm = localsgd.world(deadline_s=DEADLINE_S)
    report = work(plan, comm)
    (Path(plan["folder"]) / f"report-{report['number']}").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
