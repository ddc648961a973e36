"""The gradient stage: norms by hand, over all arenas, and what they are limited to."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    LocalSGD,
    ModelAverager,
    every,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, gradient, initial_values


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_the_norm_of_the_mean_is_over_all_arenas_and_equal_to_the_bit(
    size: int, hosts: str
) -> None:
    """Means 3 (wide, 50,000 times) and 4 (half, 50,000 times): norm √(50,000·25), limited to 1."""
    count = 50_000

    def work(comm: Communicator) -> tuple[float, bytes, bytes]:
        wide = Arena({"w": np.zeros(count, np.float32)}, comm)
        half = Arena({"h": np.zeros(count, np.float16)}, comm)
        stage = GradientStage("none", comm, max_norm=1.0)
        inner = optim.SGD([wide, half], lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=1, gradients=stage)
        wide.grad.flat[...] = 3 * (comm.rank + 1) * 2 / (size + 1)
        half.grad.flat[...] = 4
        training.step()
        return stage.norm, wide.flat.tobytes(), half.flat.tobytes()

    results = run_threads(size, work, hosts=hosts)
    assert len(set(results)) == 1
    norm, wide, half = results[0]
    # The mean of float32 is rounded once a level.
    np.testing.assert_allclose(norm, 5 * np.sqrt(count), rtol=3e-7)
    np.testing.assert_allclose(np.frombuffer(wide, np.float32), -3 / norm, rtol=1e-6)
    # Divided in float32, then rounded to the eleven bits of float16.
    np.testing.assert_allclose(np.frombuffer(half, np.float16), -4 / norm, rtol=2**-11)


def test_own_gradients_are_clipped_before_they_are_averaged() -> None:
    """(3, 4) and (0, 2), to norm at most 1: (.6, .8) and (0, 1), mean (.3, .9); then to 3/10."""

    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        arena = Arena({"x": np.zeros(2)}, comm)
        stage = GradientStage("none", comm, max_own_norm=1.0, max_norm=0.3)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 9, synchronous_steps=1, gradients=stage)
        arena.grad["x"] += [[3.0, 4.0], [0.0, 2.0]][comm.rank]
        training.step()
        return [stage.own_norm, stage.norm], arena["x"].tolist()

    for rank, (norms, values) in enumerate(run_threads(2, work)):
        np.testing.assert_allclose(norms, [[5.0, 2.0][rank], np.sqrt(0.9)], rtol=1e-15)
        np.testing.assert_allclose(values, np.array([-0.3, -0.9]) * 0.3 / np.sqrt(0.9), rtol=1e-14)


def test_gradients_that_are_stepped_with_alone_are_clipped_too() -> None:
    comm = solo()
    arena, stage = Arena({"x": np.zeros(2)}, comm), GradientStage("none", comm, max_norm=2.5)
    training = LocalSGD(optim.SGD(arena, lr=1.0), 9, gradients=stage)
    for scale in (1.0, 0.25):
        arena.grad["x"] += np.array([3.0, 4.0]) * scale
        training.step()
        assert stage.norm == 5.0 * scale
    assert arena["x"].tolist() == [-1.5 - 0.75, -2.0 - 1.0]


def test_clipping_leaves_shorter_gradients_to_the_bit() -> None:
    def train(comm: Communicator, **limits: float) -> bytes:
        arena = Arena(initial_values(), comm)
        stage = GradientStage("host", comm, **limits)
        training = LocalSGD(optim.SGD(arena, lr=0.1), 3, synchronous_steps=2, gradients=stage)
        for step in range(1, 7):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
        return arena.flat.tobytes()

    def work(comm: Communicator) -> bool:
        return train(comm) == train(comm, max_own_norm=1e6, max_norm=1e6)

    assert run_threads(3, work, hosts="2+1") == [True] * 3


def test_a_gradient_that_is_not_finite_reaches_all_and_is_not_clipped() -> None:
    def work(comm: Communicator) -> tuple[list[float], float]:
        arena = Arena({"x": np.zeros(2)}, comm)
        stage = GradientStage("none", comm, max_own_norm=1.0, max_norm=1.0)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 9, synchronous_steps=1, gradients=stage)
        arena.grad["x"] += [np.nan, 8.0] if comm.rank else [0.0, 0.5]
        training.step()
        return arena["x"].tolist(), stage.norm

    for values, norm in run_threads(2, work):
        np.testing.assert_equal(values, [np.nan, -4.25])
        assert np.isnan(norm)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_norms_are_of_the_parameters_that_groups_train(size: int, hosts: str) -> None:
    """Of a, b, c, d groups train b and d: 40,000 times 3 and 4, norm √(40,000·25); limited to 1.

    The others' gradients are averaged, and are neither counted nor clipped.
    """
    count = 40_000
    values = {"a": 1e6, "b": 3.0, "c": 1e6, "d": 4.0}

    def work(comm: Communicator) -> list[Any]:
        arena = Arena({name: np.zeros(count) for name in values}, comm)
        stage = GradientStage("none", comm, max_norm=1.0, max_own_norm=1e9)
        groups = [{"params": arena.subset([name])} for name in "bd"]
        training = LocalSGD(optim.SGD(groups, lr=1.0), 9, synchronous_steps=1, gradients=stage)
        found: list[Any] = []
        for _ in range(2):
            for name, value in values.items():
                arena.grad[name][...] = value
            training.step()
            found += [stage.norm, stage.own_norm]
        return [*found, *({*arena[name]} for name in "bd"), *({*arena.grad[name]} for name in "ac")]

    norm = 5 * np.sqrt(count)
    for found in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(found[:4], norm, rtol=1e-12)
        b, d, a, c = found[4:]
        np.testing.assert_allclose([*b, *d], [-6 / norm, -8 / norm], rtol=1e-12)
        assert a == c == {1e6}


def test_a_stage_may_be_told_of_which_parameters_norms_are() -> None:
    comm = solo()
    arena = Arena({"a": np.zeros(1), "b": np.zeros(2)}, comm)
    stage, averager = GradientStage("none", comm, max_norm=1.0), ModelAverager(every(9), comm)
    arena.grad.flat[...] = [7.0, 3.0, 4.0]
    stage.average([arena], averager, trained=[arena.subset(["b"])])
    assert stage.norm == 5.0
    assert arena.grad.flat.tolist() == [7.0, 0.6, 0.8]


def test_averaging_and_clipping_need_no_memory_of_the_models_size() -> None:
    """16 MiB of gradients, and at most 4 MiB more for blocks and messages.

    A first step loads the compiler, where there is one, once for the process.
    """
    comm = solo()
    arenas = [
        Arena({"w": np.zeros(3 << 20, np.float32)}, comm),
        Arena({"h": np.zeros(2 << 20, np.float16)}, comm),
    ]
    stage = GradientStage("none", comm, max_own_norm=1.0, max_norm=0.5)
    training = LocalSGD(optim.SGD(arenas, lr=0.1), 9, synchronous_steps=9, gradients=stage)
    training.step()
    for arena in arenas:
        arena.grad.flat[...] = 1.0
    tracemalloc.start()
    try:
        training.step(micro_batches=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    np.testing.assert_allclose(stage.norm, 1.0, rtol=1e-3)
