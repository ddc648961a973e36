"""Directions and norms averaged apart: closed form 15, and rounds by hand."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DirectionalAverager,
    MismatchError,
    every,
    outer,
    run_threads,
    solo,
)
from workers import LAYOUTS, outcomes


def merged(
    comm: Communicator, moves: list[list[float]], *, samples: list[int] | None = None
) -> list[float]:
    """Where all are after a round in which worker r has moved down by ``moves[r]``."""
    arena = Arena({"w": np.zeros(len(moves[0]))}, comm, grad=False)
    averager = DirectionalAverager(every(1), comm)
    averager.begin(arena)
    arena["w"] -= moves[comm.rank]
    if samples is not None:
        averager.record_samples(samples[comm.rank])
    averager.average_parameters(arena)
    return (-arena["w"]).tolist()


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_orthogonal_moves_of_one_length_keep_it(size: int, hosts: str) -> None:
    """Closed form 15: M moves of length 3 along axes of their own give 3 / sqrt(M) on each."""
    moves = (3 * np.eye(size)).tolist()
    for found in run_threads(size, merged, moves, hosts=hosts):
        np.testing.assert_allclose(found, np.full(size, 3 / np.sqrt(size)), rtol=1e-15)
        np.testing.assert_allclose(np.linalg.norm(found), 3, rtol=1e-15)


def test_equal_moves_stay_and_one_worker_keeps_its_own() -> None:
    """Closed form 15: the mean of equal vectors, and the identity for M = 1, to rounding."""
    for size in (1, 2, 3, 4):
        for found in run_threads(size, merged, [[3.0, -4.0, 0.0]] * size):
            np.testing.assert_allclose(found, [3, -4, 0], rtol=1e-15)


def test_weights_are_of_norms_and_directions_both() -> None:
    """Lengths 2 and 8 with weights 3 and 1: length 3.5 along (3, 1) / sqrt(10)."""
    for found in run_threads(2, lambda c: merged(c, [[2.0, 0.0], [0.0, 8.0]], samples=[3, 1])):
        np.testing.assert_allclose(found, 3.5 * np.array([3, 1]) / np.sqrt(10), rtol=1e-15)


def test_directions_that_cancel_give_the_mean() -> None:
    """Moves of 1 and -3 have the directions 1 and -1: the mean is -1. One that is 0 counts so."""
    assert run_threads(2, merged, [[1.0], [-3.0]]) == [[-1.0]] * 2
    assert run_threads(2, merged, [[0.0], [4.0]]) == [[2.0]] * 2


def test_tensors_are_merged_apart_and_plain_ones_by_the_mean() -> None:
    def work(comm: Communicator) -> tuple[list[float], list[float], list[float]]:
        arena = Arena({n: np.zeros(2) for n in ("emb", "v", "w")}, comm, grad=False)
        averager = DirectionalAverager(every(1), comm, plain=["emb"])
        averager.begin(arena)
        for name, length in (("emb", 2.0), ("v", 6.0), ("w", 2.0)):
            arena[name][comm.rank] += length
        averager.average_parameters(arena)
        return arena["emb"].tolist(), arena["v"].tolist(), arena["w"].tolist()

    for emb, v, w in run_threads(2, work):
        assert emb == [1.0, 1.0]
        np.testing.assert_allclose([v, w], [[6 / np.sqrt(2)] * 2, [np.sqrt(2)] * 2], rtol=1e-15)


def test_an_outer_step_goes_by_what_was_merged() -> None:
    """Nesterov at rate 0.5 and momentum 0.9: first 0.5 · 1.9 · v, with |v| = 2 along (1, 1)."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"w": np.zeros(2)}, comm, grad=False)
        sgd = outer.SGD(0.5, momentum=0.9, nesterov=True)
        averager = DirectionalAverager(every(1), comm, outer=sgd)
        averager.begin(arena)
        arena["w"][comm.rank] += 2.0
        averager.average_parameters(arena)
        return arena["w"].tolist()

    for found in run_threads(2, work):
        np.testing.assert_allclose(found, [0.95 * np.sqrt(2)] * 2, rtol=1e-15)


def test_a_name_that_is_no_parameter_is_an_error() -> None:
    averager = DirectionalAverager(every(1), solo(), plain=["emb"])
    with pytest.raises(ValueError, match=r"plain must name parameters, got \['emb'\]"):
        averager.begin(Arena({"w": np.zeros(2)}, solo(), grad=False))


def test_other_plain_parameters_on_one_rank_are_an_error_on_all() -> None:
    def work(comm: Communicator) -> None:
        DirectionalAverager(every(1), comm, plain=["a"] if comm.rank else [])

    for found in outcomes(3, work):
        assert isinstance(found, MismatchError)
        assert "plain parameters" in str(found)
