"""Gradients, skipped steps, buffers and optimizer state are averaged alike on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from backends import Workers
from localsgd import (
    Arena,
    Buffers,
    Communicator,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    PostLocalSGDOptimizer,
    Variance,
    optim,
)
from workers import gradient, initial_values, reference

STEPS, WARMUP = 9, 4
Groups = Sequence[Sequence[int]]


@pytest.mark.parametrize("after", ["none", "host"])
def test_post_local_sgd_with_skipped_steps_equals_the_reference(
    workers: Workers, after: Literal["none", "host"]
) -> None:
    """One rank skips in turn, and in step 3 all do."""

    def body(comm: Communicator) -> None:
        everyone, hosts = [range(comm.size)], comm.topology.hosts

        def skips(step: int) -> Sequence[int]:
            return range(comm.size) if step == 3 else [step % comm.size] if step % 2 else []

        def gradient_groups(step: int) -> Groups:
            return everyone if step <= WARMUP else hosts if after == "host" else []

        def groups_after(step: int) -> Groups:
            if step <= WARMUP or step % 2 == 0:
                return []
            return everyone if step % 4 == 1 else hosts

        expected = reference(
            comm.size,
            STEPS,
            groups_after,
            lr=0.1,
            momentum=0.9,
            gradient_groups=gradient_groups,
            skips=skips,
        )
        arena = Arena(initial_values(), comm)
        training = PostLocalSGDOptimizer(
            optim.SGD(arena, lr=0.1, momentum=0.9),
            HierarchicalModelAverager({2: "host", 4: "world"}, WARMUP, comm),
            gradients=GradientStage(after, comm),
        )
        for step in range(1, STEPS + 1):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            if comm.rank in skips(step):
                arena.grad.flat[...] = np.inf
                training.skip_step()
            else:
                training.step()
            values = comm.gather(arena.flat)
            np.testing.assert_allclose(values, expected[step - 1], rtol=1e-12, atol=1e-14)
            if step <= WARMUP:
                assert len({row.tobytes() for row in values}) == 1

    workers.run(body)


def test_the_norm_of_the_mean_gradient_is_equal_to_the_bit(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        wide = Arena({"w": np.zeros(40_000, np.float32)}, comm)
        half = Arena({"h": np.zeros(1_000, np.float16)}, comm)
        stage = GradientStage("none", comm, max_norm=1.0)
        inner = optim.SGD([wide, half], lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=9, gradients=stage, comm=comm)
        for step in range(1, 3):
            for arena in (wide, half):
                arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
            norms = comm.gather(np.array([stage.norm]))
            assert len({norm.tobytes() for norm in norms}) == 1
        for arena in (wide, half):
            assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1

    workers.run(body)


def test_statistics_and_moments_are_averaged_and_resume_to_the_bit(workers: Workers) -> None:
    def begin(comm: Communicator) -> tuple[LocalSGD, Arena, Buffers]:
        arena = Arena(initial_values(), comm)
        values = {"mean": np.zeros(3), "var": np.ones(3), "batches": np.array(0)}
        buffers = Buffers(values, {"var": Variance("mean")}, comm)
        inner = optim.Adam(arena, lr=0.1)
        return LocalSGD(inner, 3, comm=comm, state="mean", buffers=buffers), arena, buffers

    def train(training: LocalSGD, arena: Arena, buffers: Buffers, steps: range) -> bytes:
        for step in steps:
            rank = arena.comm.rank
            training.record_samples(1 + (rank + step) % 3)
            arena.grad.flat[...] = gradient(rank, step, arena.flat)
            buffers["mean"] += gradient(rank, step, buffers["mean"])
            buffers["batches"] += rank + 1
            training.step()
        moments = training.state["w"].values()
        return b"".join(array.tobytes() for array in (arena.flat, *buffers.values(), *moments))

    def body(comm: Communicator) -> None:
        straight = begin(comm)
        train(*straight, range(1, 5))
        saved = straight[0].state_dict()
        values: dict[str, Any] = {name: array.copy() for name, array in straight[1].items()}
        whole = train(*straight, range(5, STEPS + 1))
        resumed = begin(comm)
        resumed[0].load_state_dict(saved)
        for name, array in values.items():
            resumed[1][name] = array
        assert train(*resumed, range(5, STEPS + 1)) == whole
        # Nine is a multiple of the period, so all have just met.
        assert len({bytes(found) for found in comm.gather(np.frombuffer(whole, np.uint8))}) == 1

    workers.run(body)


def test_unequal_steps_behind_the_state_are_an_error_on_every_rank(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        if comm.size == 1:
            return
        arena = Arena(initial_values(), comm)
        training = LocalSGD(optim.Adam(arena, lr=0.1), 9, comm=comm, state="mean")
        for _ in range(1 + (comm.rank == 1)):
            training.optim.step()
        with pytest.raises(MismatchError, match=r"Adam .* of parameter 'w' .* 2 on rank 1"):
            training.flush()
        if comm.rank != 1:
            training.optim.step()
        training.flush()

    workers.run(body)
