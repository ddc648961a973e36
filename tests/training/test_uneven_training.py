"""Ending unevenly: what workers without data take part in."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import (
    Arena,
    Buffers,
    Communicator,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    PostLocalSGDOptimizer,
    Variance,
    lr,
    optim,
    run_threads,
)
from workers import LAYOUTS, begin, drift, gradient, initial_values

BATCHES = [1, 2, 5, 13]


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("record", [False, True])
def test_with_even_data_nothing_changes_until_the_end(size: int, hosts: str, record: bool) -> None:
    def train(comm: Communicator, uneven: bool) -> list[bytes]:
        arena = Arena(initial_values(), comm)
        stage = GradientStage("host", comm)
        training = LocalSGD(
            optim.SGD(arena, lr=0.1, momentum=0.9),
            3,
            synchronous_steps=2,
            gradients=stage,
            state="mean",
        )
        seen = []

        def loop() -> None:
            for step in range(1, 8):
                if record:
                    training.record_samples(comm.rank + step)
                arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
                training.skip_step() if step % 5 == comm.rank else training.step()
                seen.append(arena.flat.tobytes())

        if uneven:
            with training.uneven():
                loop()
        else:
            loop()
            training.flush()
        return [*seen, arena.flat.tobytes()]

    def work(comm: Communicator) -> bool:
        return train(comm, True) == train(comm, False)

    assert run_threads(size, work, hosts=hosts) == [True] * size


def test_flushes_and_means_of_workers_with_data_are_answered() -> None:
    """After step 3 ranks stand at 1, 2, 3: the mean is 2, then all are there."""

    def work(comm: Communicator) -> tuple[list[float], float, int]:
        training, arena = begin(comm, 99)
        seen = []
        with training.uneven():
            for step in range(1, 3 + comm.rank // 2):
                drift(training, arena, 1.0 if step <= comm.rank + 1 else 0.0)
                if step == 3:
                    seen.append(float(training.mean()["x"][0]))
                    training.flush()
                    seen += [float(arena["x"][0]), float(training.mean()["x"][0])]
        return seen, float(arena["x"][0]), training.averager.rounds

    first, second, third = run_threads(3, work, hosts="2+1")
    assert first == second == ([], 2.0, 2)
    assert third == ([2.0, 2.0, 2.0], 2.0, 2)


def test_a_done_worker_steps_with_the_others_gradient_at_the_wrappers_rate() -> None:
    """Rates 1, ½, ¼, ⅛ of gradients 1 and 3 (mean 2), then 3 of rank 1 alone."""

    def work(comm: Communicator) -> list[float]:
        training, arena = begin(
            comm,
            9,
            synchronous_steps=9,
            gradients=GradientStage("none", comm, max_norm=2.5),
            rate=lr.decay(1, 0.5),
        )
        with training.uneven():
            for _ in range(2 + 2 * comm.rank):
                training.record_samples(4)
                arena.grad["x"] -= 1.0 + 2.0 * comm.rank
                training.step()
        return arena["x"].tolist()

    assert run_threads(2, work) == [[2 + 1 + 2.5 / 4 + 2.5 / 8]] * 2


def test_a_done_worker_takes_the_steps_of_its_host_until_the_round_that_it_weighs_in() -> None:
    """Means of gradients 1 and 3 at rates 1 and ½, then 3 alone at ¼ and ⅛; both stay equal."""

    def work(comm: Communicator) -> list[float]:
        stage = GradientStage("host", comm)
        training, arena = begin(comm, 4, gradients=stage, rate=lr.decay(1, 0.5))
        with training.uneven():
            for _ in range(2 + 2 * comm.rank):
                drift(training, arena, 1.0 + 2.0 * comm.rank)
        return arena["x"].tolist()

    assert run_threads(2, work) == [[2 + 1 + 3 / 4 + 3 / 8]] * 2


def test_state_and_buffers_are_those_of_the_workers_with_data() -> None:
    """Adam's steps stay alike although rank 0 takes one only; the counter is the largest."""

    def work(comm: Communicator) -> tuple[int, bytes, bytes, int]:
        arena = Arena(initial_values(), comm)
        values = {"mean": np.zeros(2), "var": np.ones(2), "batches": np.array(0)}
        buffers = Buffers(values, {"var": Variance("mean")}, comm)
        inner = optim.Adam(arena, lr=0.1)
        training = LocalSGD(inner, 1, state="mean", buffers=buffers)
        with training.uneven():
            for step in range(1, BATCHES[comm.rank] + 1):
                buffers["batches"] += 1
                buffers["mean"] = np.full(2, float(step))
                arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
                training.step()
        state = training.state["w"]
        return (
            int(state["step"]),
            state["exp_avg_sq"].tobytes(),
            buffers["mean"].tobytes(),
            int(buffers["batches"]),
        )

    results = run_threads(4, work, hosts="2+2")
    assert len(set(results)) == 1
    assert results[0][0] == 13
    assert results[0][2] == np.full(2, 13.0).tobytes()
    assert results[0][3] == 13


def test_several_dtypes_end_equal() -> None:
    def work(comm: Communicator) -> bytes:
        wide = Arena({"w": np.zeros(3, np.float32)}, comm)
        half = Arena({"h": np.zeros(2, np.float16)}, comm)
        inner = optim.SGD([wide, half], lr=0.1, momentum=0.9)
        stage = GradientStage("host", comm, max_norm=1.0)
        averager = HierarchicalModelAverager({2: "host", 4: "world"}, 2, comm)
        training = PostLocalSGDOptimizer(inner, averager, gradients=stage, state="mean")
        with training.uneven():
            for step in range(1, BATCHES[comm.rank] + 1):
                for arena in (wide, half):
                    arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
                training.step()
        return wide.flat.tobytes() + half.flat.tobytes()

    assert len(set(run_threads(4, work, hosts="3+1"))) == 1
