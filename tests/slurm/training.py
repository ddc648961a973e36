"""The job under Slurm: a training that saves, and stands at a step until it is told to stop.

    python training.py FOLDER [stands | hangs]

It stands, in its first run, at a step after which nothing is saved and nobody looks; one that
hangs does not go on when it is told.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import localsgd
from localsgd import Communicator, every

STEPS, STANDS_AT = 20, 7
SAVED_BEFORE, SAVED_ONCE_TOLD = 6, 8
ALIVE = "alive"


def train(comm: Communicator, folder: Path, how: str = "", *, signals: bool = True) -> str:
    """The digest of what a DiLoCo has learned; rank 0 says where it begins."""
    if how:
        told, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
    arena = localsgd.Arena({"w": np.zeros(50), "b": np.zeros(7, np.float64)}, comm)
    training = localsgd.DiLoCo(localsgd.optim.AdamW(arena, lr=0.05), 4, comm=comm)
    noise = np.random.default_rng(comm.rank)
    parts = {"params": arena, "training": training, "noise": noise}
    preemption = every(2) if signals else None
    saves = localsgd.Checkpoints(folder, parts, comm, when=every(3), preemption=preemption)
    step = saves.load() or 0
    if comm.rank == 0:
        print(f"{comm.size} workers on hosts {comm.topology} begin after step {step}", flush=True)
    while step < STEPS:
        arena.grad.flat[...] = arena.flat - comm.rank + noise.normal(size=57)
        training.step()
        step += 1
        if how and step == STANDS_AT and "SLURM_RESTART_COUNT" not in os.environ:
            saves.wait()
            print(f"rank {comm.rank} stands at step {step}", flush=True)
            os.read(told, 1)
            if how == "hangs":
                live_on(folder / f"{ALIVE}-{comm.rank}")
        saves.after(step)
    saves.close()
    return hashlib.sha256(arena.flat).hexdigest()


def live_on(path: Path) -> None:
    """Writes down for how many seconds this process lives, until it is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin = time.monotonic()
    while True:
        path.write_text(f"{time.monotonic() - begin:.1f}\n")
        threading.Event().wait(0.1)


def main() -> None:
    comm = localsgd.world(deadline_s=30)
    digest = train(comm, Path(sys.argv[1]), *sys.argv[2:])
    assert comm.collect(digest) == [digest] * comm.size
    if comm.rank == 0:
        print(f"ends with {digest}", flush=True)


if __name__ == "__main__":
    main()
