"""Directions and norms averaged apart: closed form 15, and rounds by hand."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DirectionalAverager,
    MismatchError,
    codecs,
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


def test_directions_are_of_what_messages_have_and_the_rest_goes_later() -> None:
    """The larger of two numbers goes. Worker 0 moves by (4, 3) and sends (4, 0), worker 1 (0, 2).

    Norms of 4 and 2 along the two axes: 3 along (1, 1) / sqrt(2). Then neither moves, and worker 0
    sends the 3 that it has kept: a norm of 1.5 in the mean, along (0, 1).
    """

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"w": np.zeros(2)}, comm, grad=False)
        averager = DirectionalAverager(every(1), comm, compress=codecs.TopK(1, 2))
        averager.begin(arena)
        arena["w"] -= [[4.0, 3.0], [0.0, 2.0]][comm.rank]
        found = []
        for _ in range(2):
            averager.average_parameters(arena)
            found.append((-arena["w"]).tolist())
        assert averager.state_dict()["directions"][0]["unsent"].tolist() == [0.0, 0.0]
        return found

    half = 3 / np.sqrt(2)
    for found in run_threads(2, work, hosts="1+1"):
        np.testing.assert_allclose(found, [[half, half], [half, half + 1.5]], rtol=1e-15)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_codec_that_loses_nothing_changes_nothing(size: int) -> None:
    """To rounding: whole numbers go as they are. One direction cancels, one is by weight."""

    def work(comm: Communicator, compress: codecs.Codec | None) -> list[float]:
        arena = Arena({"v": np.zeros(3), "w": np.zeros(3), "emb": np.zeros(3)}, comm, grad=False)
        averager = DirectionalAverager(every(1), comm, plain=["emb"], compress=compress)
        averager.begin(arena)
        for step in range(2):
            arena["v"] += [1 - 2 * (comm.rank % 2) * (comm.rank + 1), 0, 0]
            arena["w"] += np.roll([3, -4, step], comm.rank)
            arena["emb"] += comm.rank
            averager.record_samples(1 + comm.rank // 2)
            averager.average_parameters(arena)
        return arena.flat.tolist()

    one, other = (
        run_threads(size, lambda comm, codec=codec: work(comm, codec))
        for codec in (None, codecs.TopK(9, 9))
    )
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_are_a_means_and_norms_or_messages_of_all(size: int) -> None:
    """24,576 numbers in two tensors, one of them plain, on hosts of one worker each.

    A mean sends 2 n (1 - 1/K) bytes; a message of int8 has one a number and 4 for each of 96
    blocks. Beside both a norm of 8 bytes goes to every other worker, and one length from the first
    to all, which not every worker passes on.
    """

    def work(comm: Communicator, compress: codecs.Codec | None) -> int:
        arena = Arena({n: np.zeros(12_288, np.float32) for n in ("emb", "w")}, comm, grad=False)
        averager = DirectionalAverager(every(1), comm, plain=["emb"], compress=compress)
        averager.begin(arena)
        arena.flat[...] += comm.rank + 1
        averager.average_parameters(arena)
        return averager.traffic.sent

    hosts = "+".join(["1"] * size)
    exact = run_threads(size, lambda comm: work(comm, None), hosts=hosts)
    coded = run_threads(size, lambda comm: work(comm, codecs.Int8()), hosts=hosts)
    mean, message = 2 * 4 * 24_576 * (size - 1) // size, 24_576 + 4 * 96
    norm = 8 * (size - 1)
    assert all(norm <= sent - mean <= 2 * norm for sent in exact)
    assert all(norm <= sent - message * (size - 1) <= 2 * norm for sent in coded)


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
