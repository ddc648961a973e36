"""Steps that a worker leaves out: what becomes of its samples, and of the round."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    LocalSGD,
    optim,
    run_threads,
)
from workers import begin, drift


@pytest.mark.parametrize("staged", [False, True])
def test_a_skipped_local_step_is_counted_and_its_samples_are_forgotten(staged: bool) -> None:
    """Rank 1 saw 1 sample in the step that it took, rank 0 saw 3: (3·(-1) + 1·(-2)) / 4."""

    def work(comm: Communicator) -> tuple[float, int]:
        stage = GradientStage("none", comm) if staged else None
        training, arena = begin(comm, 2, gradients=stage)
        for step in range(2):
            training.record_samples([1, 2][step] if comm.rank == 0 else [1, 99][step])
            arena.grad["x"] += [0.5, 2.0][comm.rank]
            if step == 1 and comm.rank == 1:
                arena.grad["x"] += np.inf
                training.skip_step()
            else:
                training.step()
        return float(arena["x"][0]), training.averager.step

    assert run_threads(2, work) == [(-1.25, 2)] * 2


@pytest.mark.parametrize("uneven", [False, True])
def test_a_worker_that_skips_all_its_steps_weighs_nothing_in_the_round(uneven: bool) -> None:
    """Averaged after every step; all record. Rank 1 skips step 2, both skip step 3.

    (-1·3 - 2·1)/4 = -1¼; then rank 0 alone: -2¼, where both stay in step 3.
    """

    def work(comm: Communicator) -> list[float]:
        training, arena = begin(comm, 1)
        seen = []
        with training.uneven() if uneven else nullcontext():
            for step in range(1, 4):
                training.record_samples(1 if comm.rank else 3)
                arena.grad["x"] += comm.rank + 1.0
                training.skip_step() if step + comm.rank >= 3 else training.step()
                seen.append(float(arena["x"][0]))
        return seen

    assert run_threads(2, work) == [[-1.25, -2.25, -2.25]] * 2


def test_where_all_skip_a_resumed_round_and_a_mean_are_no_errors_either() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.full(1, 5.0)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 2)
        training.record_samples(1)
        training.skip_step()
        resumed = LocalSGD(optim.SGD(arena, lr=1.0), 2)
        resumed.load_state_dict(training.state_dict())
        seen = resumed.mean()["x"].tolist()
        resumed.record_samples(0)
        resumed.step()
        return seen + arena["x"].tolist()

    assert run_threads(2, work) == [[5.0, 5.0]] * 2


def test_a_warmup_that_ends_with_all_skipping_is_settled_too() -> None:
    """Samples are recorded in the warm-up only; after it, ranks move by 1 and 3, to the mean."""

    def work(comm: Communicator) -> float:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 1, synchronous_steps=1, gradients=stage)
        training.record_samples(4)
        training.skip_step()
        drift(training, arena, 1.0 + 2.0 * comm.rank)
        return float(arena["x"][0])

    assert run_threads(2, work) == [2.0, 2.0]
