"""What compressed rounds keep, send and leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    MismatchError,
    ModelAverager,
    every,
    outer,
    run_threads,
    solo,
)
from localsgd.comm.codecs import (
    BFLOAT16,
    E3M0,
    FLOAT16,
    Codec,
    Int8,
    RandomK,
    Sign,
    TopK,
    TwoBit,
)
from workers import outcomes

CODECS: dict[str, Codec] = {
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": Int8(8),
    "E3M0": E3M0(8),
    "2 bits": TwoBit(8),
    "sign": Sign(8),
    "top-k": TopK(2, 16),
    "random-k": RandomK(0.25),
}


def random_moves(rank: int, rounds: int, count: int) -> np.ndarray:
    return np.random.default_rng(rank).normal(size=(rounds, count))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("size", "hosts"), [(2, "1+1"), (3, "1+1+1"), (4, "2+2"), (3, "2+1")])
def test_what_was_sent_and_what_was_not_make_all_that_was_moved(
    name: str, size: int, hosts: str
) -> None:
    """Closed form 11: parameters and residuals together have moved by the exact means.

    Of every host's residual the mean by workers, and of the result's all of the owners'; 1e-12 for
    rounding in float64.
    """
    rounds, count = 12, 40

    def work(comm: Communicator) -> Any:
        arena = Arena({"x": np.zeros(count)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=CODECS[name])
        averager.begin(arena)
        for move in random_moves(comm.rank, rounds, count):
            arena.flat[:] += move
            averager.average_parameters(arena)
        (kept,) = averager.state_dict()["compression"]
        left, place = {way: np.zeros(count) for way in kept["unsent"]}, 0
        for part in comm.held(count):
            length = part.stop - part.start
            for way, values in kept["unsent"].items():
                left[way][part] = values[place : place + length]
            place += length
        host = comm.topology.neighbours(comm.rank)
        return arena.flat.copy(), left["values"] * len(host) / comm.size, left["result"]

    found = run_threads(size, work, hosts=hosts)
    moved = sum(random_moves(rank, rounds, count).sum(axis=0) for rank in range(size)) / size
    unsent = sum(values + result for _, values, result in found)
    np.testing.assert_allclose(found[0][0] + unsent, moved, rtol=1e-12, atol=1e-12)
    assert np.abs(unsent).max() > 1e-6


def test_error_feedback_by_hand() -> None:
    """Two hosts of one number each in blocks of 8: signs times the mean of 8 magnitudes.

    Worker 0 moves by 8 in the first number, worker 1 not at all. Round 1: worker 0 sends 1
    everywhere (mean magnitude 1), keeps 7, -1, -1, …; worker 1 sends 0. The result moves by 1/2.
    Round 2, without moves: mean magnitude (7 + 7) / 8 = 1.75, signs +, -, -, …; half of it counts.
    """

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=Sign(8))
        averager.begin(arena)
        found = []
        for move in (8.0, 0.0):
            arena.flat[[0, 8]] += move * (comm.rank == 0)
            averager.average_parameters(arena)
            found.append(arena.flat.tolist())
        return found

    for first, second in run_threads(2, work, hosts="1+1"):
        assert first == [0.5] * 16
        assert second == [0.5 + sign * 0.875 for sign in [1, *[-1] * 7] * 2]


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_those_of_the_messages(name: str) -> None:
    """Two hosts of one worker: half of the buffer there, and the result of the other half back."""

    def work(comm: Communicator) -> int:
        arena = Arena({"x": np.zeros(8000, np.float32)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=CODECS[name])
        averager.begin(arena)
        averager.average_parameters(arena)
        return averager.traffic.sent

    assert run_threads(2, work, hosts="1+1") == [2 * CODECS[name].encoded_bytes(4000)] * 2


def test_on_one_host_nothing_is_compressed() -> None:
    def work(comm: Communicator) -> None:
        found = []
        for compress in (None, Sign()):
            arena = Arena({"x": np.zeros(30)}, comm, grad=False)
            averager = ModelAverager(every(1), comm, outer=outer.SGD(0.7), compress=compress)
            averager.begin(arena)
            for move in random_moves(comm.rank, 4, 30):
                arena.flat[:] += move
                averager.average_parameters(arena)
            assert "compression" not in averager.state_dict()
            found.append(arena.flat.tobytes())
        assert found[0] == found[1]

    run_threads(3, work, hosts="3")


def test_a_random_choice_is_another_one_in_every_round() -> None:
    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(32)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=RandomK(0.25))
        averager.begin(arena)
        for _ in range(60):
            arena.flat[:] += 1
            averager.average_parameters(arena)
        return float(arena.flat.min())

    assert min(run_threads(2, work, hosts="1+1")) > 30


def test_rounds_of_smaller_groups_between_hosts_are_exact_too() -> None:
    """Pairs of ranks, each of two hosts."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = HierarchicalModelAverager({1: 2, 8: "world"}, 1, comm, compress=Sign(8))
        averager.begin(arena)
        for _ in range(3):
            arena.flat[:] += np.arange(16) * (comm.rank + 1.0)
            averager.average_parameters(arena)
        return arena.flat.tolist()

    # Step 1 ends the warm-up with all.
    found = run_threads(4, work, hosts="0,2/1,3")
    for rank, values in enumerate(found):
        pair = 1.5 if rank < 2 else 3.5
        np.testing.assert_allclose(values, np.arange(16) * (2.5 + 2 * pair), rtol=1e-12)


def test_rounds_of_smaller_groups_are_exact() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = HierarchicalModelAverager(
            {1: "host", 4: "world"}, warmup_steps=1, comm=comm, compress=Sign(8)
        )
        averager.begin(arena)
        for step in range(1, 5):
            arena.flat[:] += np.arange(16) * (comm.rank + step)
            averager.average_parameters(arena)
        return arena.flat.tolist()

    def exact(host: list[int]) -> list[float]:
        start = sum(rank + 1 for rank in range(3)) / 3
        mean = sum(host) / len(host)
        return [index * (start + sum(mean + step for step in (2, 3, 4))) for index in range(16)]

    found = run_threads(3, work, hosts="2+1")
    np.testing.assert_allclose(found, [exact([0, 1]), exact([0, 1]), exact([2])], rtol=1e-12)


@pytest.mark.parametrize("together", [{"synchronous_steps": 2}, {"warmup_steps": 2}])
def test_steps_together_are_exact_and_rounds_go_from_their_end(together: dict[str, int]) -> None:
    def work(comm: Communicator) -> list[bytes]:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = ModelAverager(every(2, **together), comm, compress=Sign(8))
        averager.begin(arena)
        moves = random_moves(comm.rank, 4, 16)
        found = []
        for move in moves:
            arena.flat[:] += move
            averager.average_parameters(arena)
            found.append(arena.flat.copy())
        return found

    found = run_threads(2, work, hosts="1+1")
    moves = sum(random_moves(rank, 4, 16) for rank in range(2)) / 2
    for own in found:
        np.testing.assert_allclose(own[1], moves[:2].sum(axis=0), rtol=1e-12, atol=1e-14)
        # From there the first round moves every number of a block by one of three amounts.
        jumps = np.abs(own[3] - own[1]).reshape(2, 8).round(9)
        assert all(len(set(block)) <= 2 for block in jumps.tolist())


def test_without_error_feedback_what_is_lost_is_lost() -> None:
    """Each worker's one large number is sent for ever, and the small ones never."""

    def work(comm: Communicator, error_feedback: bool) -> float:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=TopK(1, 8), error_feedback=error_feedback)
        averager.begin(arena)
        for _ in range(40):
            arena.flat[:] += np.array([1.0, *[0.25] * 7] * 2)
            averager.average_parameters(arena)
        return float(arena.flat[1])

    assert run_threads(2, lambda comm: work(comm, False), hosts="1+1") == [0.0] * 2
    assert min(run_threads(2, lambda comm: work(comm, True), hosts="1+1")) > 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ModelAverager(every(1), solo(), compress="int8"), TypeError, "must be a codec"),
        (
            lambda: ModelAverager(every(1), solo(), compress=Sign(), error_feedback=1),
            TypeError,
            "error_feedback must be",
        ),
    ],
)
def test_other_things_are_refused(make: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_an_unbiased_codec_with_error_feedback_is_refused() -> None:
    with pytest.raises(ValueError, match="must go with error_feedback=False"):
        ModelAverager(every(1), solo(), compress=RandomK(0.1, unbiased=True))
    ModelAverager(every(1), solo(), compress=RandomK(0.1, unbiased=True), error_feedback=False)


def test_ranks_that_begin_from_different_values_are_told() -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.full(16, float(comm.rank))}, comm, start="keep", grad=False)
        ModelAverager(every(1), comm, compress=Sign(8)).begin(arena)

    for found in outcomes(2, work, hosts="1+1"):
        assert isinstance(found, MismatchError)
        assert "parameters with digest" in str(found)


def test_a_state_of_other_hosts_is_refused_and_changes_nothing() -> None:
    def saved(comm: Communicator) -> Any:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=Sign(8))
        averager.begin(arena)
        return averager.state_dict()

    (state, *_) = run_threads(4, saved, hosts="2+2")

    def load(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(16)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=Sign(8))
        averager.begin(arena)
        with pytest.raises(ValueError, match="it is of another number of ranks, or hosts"):
            averager.load_state_dict(state)
        with pytest.raises(ValueError, match="must have 'compression'"):
            averager.load_state_dict({k: v for k, v in state.items() if k != "compression"})
        assert averager.step == 0

    run_threads(2, load, hosts="1+1")
