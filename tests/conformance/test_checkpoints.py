"""What a checkpoint gives back: training as if it had never stopped, whatever the averager."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from averager_kinds import KINDS, Kind, arenas, train
from backends import Workers
from localsgd import Arena, Checkpoints, Communicator, ModelAverager, every

pytestmark = pytest.mark.long

STEPS = 8


@contextmanager
def shared_folder(comm: Communicator) -> Iterator[Path]:
    """A folder that all ranks see, for as long as all need it."""
    with tempfile.TemporaryDirectory() if comm.rank == 0 else nullcontext("") as made:
        yield Path(str(comm.collect(made)[0]))
        comm.barrier()


def training(
    kind: Kind, comm: Communicator, folder: Path
) -> tuple[list[Arena], ModelAverager, Checkpoints]:
    params, averager = arenas(comm), kind.make(comm)
    parts = {"params": params, "averager": averager}
    return params, averager, Checkpoints(folder, parts, comm, when=every(1), keep=STEPS)


def resume(kind: Kind, comm: Communicator, folder: Path) -> None:
    whole, averager, saves = training(kind, comm, folder)
    averager.begin(whole)
    for step in range(1, STEPS + 1):
        train(kind, averager, whole, range(step, step + 1))
        saves.after(step)
    saves.close()
    for stop in range(1, STEPS):
        params, later, saves = training(kind, comm, folder)
        assert saves.load(stop) == stop
        later.begin(params)
        train(kind, later, params, range(stop + 1, STEPS + 1))
        for one, other in zip(params, whole, strict=True):
            assert one.flat.tobytes() == other.flat.tobytes()
        saves.close()


@pytest.mark.one_layout
@pytest.mark.parametrize("name", KINDS)
def test_resuming_at_any_step_is_never_having_stopped(workers: Workers, name: str) -> None:
    """Two periods and more, in the middle of them and with rounds on their way, to the bit."""

    def body(comm: Communicator) -> None:
        with shared_folder(comm) as folder:
            resume(KINDS[name], comm, folder)

    workers.run(body)
