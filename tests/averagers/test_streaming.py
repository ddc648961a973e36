"""What a streaming averager makes of its options; the algorithm itself is a conformance suite."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from localsgd import (
    NON_MEMBER,
    Arena,
    Communicator,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    outer,
    run_threads,
    solo,
)
from localsgd.averagers import OverlappedAverager, StreamingAverager
from workers import outcomes

NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def moved(comm: Communicator, averager: ModelAverager, steps: int) -> list[bytes]:
    """The parameters after every step, in which each worker moves by other numbers."""
    arena = Arena({"a": np.zeros(3), "b": np.ones(4)}, comm, grad=False)
    averager.begin(arena)
    random, found = np.random.default_rng(comm.rank), []
    for _ in range(steps):
        arena.flat[:] += random.normal(size=7)
        averager.average_parameters(arena)
        found.append(arena.flat.tobytes())
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: outer.SGD(**NESTEROV),
        lambda: outer.using(optim.Adam, lr=0.1),
        lambda: outer.SlowMo(lambda: 0.1, beta=0.6),
        lambda: None,
    ],
    ids=["nesterov", "adam", "slowmo", "mean"],
)
@pytest.mark.parametrize("together", [{}, {"synchronous_steps": 3}])
def test_one_fragment_is_the_plain_averager_to_the_bit(make: Any, together: Any) -> None:
    def work(comm: Communicator) -> None:
        plain = ModelAverager(every(4, **together), comm, outer=make())
        streaming = StreamingAverager(4, 1, comm, outer=make(), **together)
        assert moved(comm, streaming, 15) == moved(comm, plain, 15)

    run_threads(3, work, hosts="2+1")


def test_a_warm_up_ends_in_a_round_of_all() -> None:
    def work(comm: Communicator) -> None:
        plain = ModelAverager(every(4, warmup_steps=3), comm, outer=outer.SGD(**NESTEROV))
        streaming = StreamingAverager(4, 1, comm, outer=outer.SGD(**NESTEROV), warmup_steps=3)
        assert moved(comm, streaming, 12) == moved(comm, plain, 12)

    run_threads(2, work)


def test_a_fragment_weighs_the_samples_since_it_left() -> None:
    """Worker r stands at r; in step s it sees s samples if r is 0, else 1.

    Fragment b leaves after steps 2 and 6, a after 4: weights 1 + 2, 1 + 2 + 3 + 4, 3 + 4 + 5 + 6 of
    worker 0 against 2, 4, 4 of worker 1.
    """

    def work(comm: Communicator) -> list[tuple[float, float]]:
        arena = Arena({"a": np.zeros(1), "b": np.zeros(1)}, comm, grad=False)
        averager = StreamingAverager(4, [["a"], ["b"]], comm)
        found = []
        for step in range(1, 7):
            arena.flat[:] = comm.rank
            averager.record_samples(1 if comm.rank else step)
            averager.average_parameters(arena)
            found.append((float(arena["a"][0]), float(arena["b"][0])))
        return found

    for rank, found in enumerate(run_threads(2, work)):
        assert found[1] == (rank, pytest.approx(2 / 5))
        assert found[3] == (pytest.approx(4 / 14), rank)
        assert found[5] == (rank, pytest.approx(4 / 22))


def test_the_outer_step_is_that_of_the_time_when_the_fragment_left() -> None:
    """Worker 1 joins the round only when worker 0 has another rate: 10 - 0.5 · 1 by all."""
    changed = threading.Event()

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.full(4, 10.0)}, comm, grad=False)
        rule = outer.SGD(0.5)
        averager = StreamingAverager(1, 1, comm, outer=rule, delay=1)
        averager.begin(arena)
        arena.flat[:] -= 1.0
        if comm.rank == 1:
            assert changed.wait(60)
        averager.average_parameters(arena)
        rule.lr = 0.25
        changed.set()
        averager.land(arena)
        return arena.flat.tolist()

    assert run_threads(2, work) == [[9.5] * 4] * 2


def test_an_overlapped_round_without_delay_is_the_mean() -> None:
    def work(comm: Communicator) -> None:
        plain = ModelAverager(every(3), comm)
        assert moved(comm, OverlappedAverager(3, 0, comm), 8) == moved(comm, plain, 8)

    run_threads(3, work)


def test_mixing_of_1_leaves_the_workers_alone() -> None:
    def work(comm: Communicator) -> list[list[bytes]]:
        streaming = StreamingAverager(2, 2, comm, outer=outer.SGD(**NESTEROV), delay=1, mixing=1.0)
        return [moved(comm, streaming, 5), moved(comm, ModelAverager(every(99), comm), 5)]

    for found, alone in run_threads(2, work):
        np.testing.assert_allclose(
            np.frombuffer(b"".join(found)), np.frombuffer(b"".join(alone)), rtol=1e-12
        )


def test_bytes_are_those_of_one_round_of_all_parameters_a_period() -> None:
    """Two hosts of one worker, 24,000 bytes: half goes each way, and the result half."""

    def work(comm: Communicator) -> int:
        arena = Arena({"a": np.zeros(3000), "b": np.zeros(3000)}, comm, grad=False)
        averager = StreamingAverager(4, 2, comm, delay=2)
        for _ in range(9):
            averager.average_parameters(arena)
        averager.land(arena)
        return averager.traffic.sent

    # Fragment 1 leaves after steps 2 and 6, fragment 0 after 4 and 8: two rounds of each.
    assert run_threads(2, work, hosts="1+1") == [2 * 48_000] * 2


def test_in_a_wrapper_with_state_along_and_uneven_ends() -> None:
    """State is averaged whenever the first fragment leaves, and all end equal."""

    def work(comm: Communicator) -> tuple[bytes, list[float]]:
        arena = Arena({"a": np.zeros(3), "b": np.ones(4)}, comm)
        averager = StreamingAverager(4, 2, comm, outer=outer.SGD(**NESTEROV), delay=2)
        training = PostLocalSGDOptimizer(
            optim.SGD(arena, lr=0.1, momentum=0.5), averager, state="mean"
        )
        with training.uneven():
            for step in range(3 + 4 * comm.rank):
                arena.grad.flat[:] = np.sin(arena.flat + comm.rank + step)
                training.step()
        return arena.flat.tobytes(), [averager.step]

    found = run_threads(3, work)
    assert found == [found[0]] * 3
    assert found[0][1] == [11]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamingAverager(4, 2, solo(), mixing=1.5), "mixing must be at most 1, got 1.5"),
        (
            lambda: StreamingAverager(4, 2, solo(), mixing=0.5, keep_progress=True),
            "keep_progress must have mixing 0, got 0.5",
        ),
        (lambda: StreamingAverager(4, [], solo()), "fragments must be at least 1, got 0"),
        (lambda: OverlappedAverager(2, 3, solo()), "delay must be at most the period, 2, got 3"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_different_plans_are_an_error_on_every_rank() -> None:
    def different(comm: Communicator) -> None:
        StreamingAverager(4, [["a"], ["b"]] if comm.rank else [["b"], ["a"]], comm)

    for found in outcomes(2, different):
        assert isinstance(found, MismatchError)
        assert "fragments" in str(found)

    def unknown(comm: Communicator) -> None:
        arena = Arena({"a": np.zeros(3)}, comm, grad=False)
        StreamingAverager(4, [["w"]], comm).begin(arena)

    for found in outcomes(2, unknown):
        assert isinstance(found, ValueError)
        assert "got ['w']" in str(found)


def test_a_worker_outside_of_the_group_only_counts() -> None:
    averager = StreamingAverager(4, 2, NON_MEMBER)
    arena = Arena({"a": np.zeros(3), "b": np.zeros(3)}, solo(), grad=False)
    for _ in range(5):
        assert not averager.average_parameters(arena)
    assert averager.step == 5 and not averager.flush(arena)
