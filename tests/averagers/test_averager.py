"""Counting and rounds: what every averager does, with its group and what goes along."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    MismatchError,
    ModelAverager,
    every,
    run_threads,
    solo,
)
from localsgd.averagers import Companion
from workers import LAYOUTS, filled, outcomes

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def test_steps_are_counted_and_rounds_reported() -> None:
    def work(comm: Communicator) -> tuple[list[bool], int]:
        averager, arena = ModelAverager(every(3), comm), filled(comm, 0.0)
        return [averager.average_parameters(arena) for _ in range(7)], averager.step

    for rounds, step in run_threads(2, work):
        assert rounds == [False, False, True, False, False, True, False]
        assert step == 7


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_round_moves_every_worker_to_the_mean_in_place(size: int, hosts: str) -> None:
    def work(comm: Communicator) -> tuple[bytes, list[float], bool]:
        averager, arena = ModelAverager(every(1), comm), filled(comm, 3.0 * comm.rank + 1)
        view = arena["w"]
        averager.average_parameters(arena)
        return arena.flat.tobytes(), arena.flat.tolist(), np.shares_memory(view, arena["w"])

    results = run_threads(size, work, hosts=hosts)
    assert len({bits for bits, _, _ in results}) == 1
    assert all(shared for _, _, shared in results)
    np.testing.assert_allclose(results[0][1], 3.0 * (size - 1) / 2 + 1, rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "hosts"), [(3, "2+1"), (6, "3+2+1"), (7, "7")])
def test_identical_replicas_stay_bit_identical(size: int, hosts: str, dtype: Any) -> None:
    limits: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    given = np.random.default_rng(0).normal(size=500).astype(dtype)
    given[:3] = [limits.max, limits.tiny, limits.smallest_subnormal]

    def work(comm: Communicator) -> bool:
        arena = Arena({"w": given}, comm)
        averager = ModelAverager(every(1), comm)
        averager.average_parameters(arena)
        averager.record_samples(comm.rank + 1)
        averager.average_parameters(arena)
        return arena.flat.tobytes() == given.tobytes()

    assert all(run_threads(size, work, hosts=hosts))


def test_several_arenas_are_one_model_and_one_step() -> None:
    def work(comm: Communicator) -> tuple[int, list[float], list[float]]:
        wide, narrow = filled(comm, comm.rank), Arena({"n": np.zeros(2, np.float16)}, comm)
        narrow.flat[...] = 10 * comm.rank
        averager = ModelAverager(every(1), comm)
        averager.average_parameters([wide, narrow])
        return averager.step, wide.flat.tolist(), narrow.flat.tolist()

    for result in run_threads(3, work):
        assert result == (1, [1.0] * 3, [10.0] * 2)


def test_the_default_group_is_the_world() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = filled(comm, comm.rank)
        ModelAverager(every(1)).average_parameters(arena)
        return arena.flat.tolist()

    assert run_threads(3, work) == [[1.0] * 3] * 3


def test_workers_average_with_their_own_group_only() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = filled(comm, comm.rank)
        ModelAverager(every(1), comm.split(comm.rank % 2)).average_parameters(arena)
        return arena.flat.tolist()

    assert run_threads(4, work, hosts="2+2") == [[1.0] * 3, [2.0] * 3] * 2


def test_a_worker_outside_the_group_counts_and_does_not_change() -> None:
    def work(comm: Communicator) -> tuple[list[bool], int, list[float]]:
        arena = filled(comm, comm.rank)
        group = comm.split(0 if comm.rank < 2 else None)
        averager = ModelAverager(every(2), group)
        rounds = [averager.average_parameters(arena) for _ in range(2)]
        averager.flush(arena)
        assert averager.mean_of(arena)["w"].tolist() == arena["w"].tolist()
        return rounds, averager.step, arena.flat.tolist()

    inside = ([False, True], 2, [0.5] * 3)
    assert run_threads(3, work) == [inside, inside, ([False, False], 2, [2.0] * 3)]


def test_a_failed_round_is_not_counted_and_keeps_the_samples() -> None:
    def work(comm: Communicator) -> tuple[int, Any]:
        averager, arena = ModelAverager(every(2), comm), filled(comm, comm.rank)
        averager.average_parameters(arena)
        if comm.rank == 0:
            averager.record_samples(3)
        with pytest.raises(MismatchError, match="weight"):
            averager.average_parameters(arena)
        assert arena.flat.tolist() == [comm.rank] * 3
        saved = averager.state_dict()
        if comm.rank == 1:
            averager.record_samples(1)
        assert averager.average_parameters(arena)
        assert arena.flat.tolist() == [0.25] * 3
        return saved["step"], saved["samples"][0]

    assert run_threads(2, work) == [(1, 3), (1, None)]


def test_workers_at_different_steps_get_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> int:
        averager, arena = ModelAverager(every(1), comm), filled(comm, comm.rank)
        averager.step = 5 if comm.rank == 1 else 4
        with pytest.raises(MismatchError, match=r"round after step 5.*round after step 6"):
            averager.average_parameters(arena)
        assert arena.flat.tolist() == [comm.rank] * 3
        return averager.step

    assert run_threads(3, work) == [4, 5, 4]


def test_different_schedules_are_an_error_on_every_rank() -> None:
    for outcome in outcomes(3, lambda comm: ModelAverager(every(4 + comm.rank // 2), comm)):
        assert isinstance(outcome, MismatchError)
        assert str(outcome).endswith("got every(4) on ranks 0, 1; every(5) on rank 2")


def test_a_schedule_without_a_repr_is_compared_by_its_class() -> None:
    class Once:
        def due(self, step: int) -> bool:
            return step == 1

    def work(comm: Communicator) -> tuple[list[bool], str]:
        averager, arena = ModelAverager(Once(), comm), filled(comm, 0.0)
        return [averager.average_parameters(arena) for _ in range(2)], averager.state_dict()[
            "schedule"
        ]

    for rounds, words in run_threads(2, work):
        assert rounds == [True, False]
        assert words.endswith("Once")


def test_a_schedule_must_have_due() -> None:
    with pytest.raises(TypeError, match=r"schedule must have due\(step\).*got 8"):
        ModelAverager(8, solo())  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [np.zeros(3), {"w": np.zeros(3)}, [np.zeros(3)], "w", None])
def test_parameters_must_be_arenas(params: Any) -> None:
    averager = ModelAverager(every(1), solo())
    with pytest.raises(TypeError, match="params must be an Arena or a sequence of Arenas"):
        averager.average_parameters(params)
    with pytest.raises(ValueError, match="at least one Arena"):
        averager.average_parameters([])
    assert averager.step == 0


def test_a_method_with_outer_state_gives_its_rule_for_the_mean() -> None:
    """Moving half of the way from 0 to the mean: workers at 0..2 meet at 1/2, then keep 1/4."""

    class HalfWay(ModelAverager):
        mix = 0.25

        def update_of(self, index: int, arena: Arena) -> Any:
            def update(part: slice, mean: np.ndarray) -> None:
                mean *= 0.5

            return update

    def work(comm: Communicator) -> list[float]:
        arena = filled(comm, comm.rank)
        HalfWay(every(1), comm).average_parameters(arena)
        return arena.flat.tolist()

    assert run_threads(3, work, hosts="2+1") == [
        [0.25 * rank + 0.75 * 0.5] * 3 for rank in range(3)
    ]


def test_what_goes_along_joins_every_round_with_its_group_and_weight() -> None:
    """Values r and 10 r of weights r + 1: the host of ranks 0 and 1 alone first, then all."""

    class Along:
        words = "a companion"

        def __init__(self, comm: Communicator, arena: Arena) -> None:
            self.values, self.arena = np.full(1, 10.0 * comm.rank), arena
            self.before: list[float] = []

        def ready(self, group: Communicator, weight: float | None) -> None:
            self.before.append(self.arena.flat.tolist()[0])

        def join(self, group: Communicator, weight: float | None) -> None:
            group.allreduce(self.values, "mean", weight=weight)

    def work(comm: Communicator) -> tuple[list[float], list[float], list[float]]:
        arena = filled(comm, comm.rank)
        along = Along(comm, arena)
        assert isinstance(along, Companion)
        averager = HierarchicalModelAverager({2: "host", 4: "world"}, comm=comm)
        averager.step = 2
        averager.record_samples(comm.rank + 1)
        assert averager.average_parameters(arena, [along])
        seen = [arena.flat.tolist()[0], float(along.values[0])]
        averager.average_parameters(arena, [along])
        averager.flush(arena, [along])
        return seen, [arena.flat.tolist()[0], float(along.values[0])], along.before

    first, second, third = run_threads(3, work, hosts="2+1")
    mean, pooled = 2 / 3, (2 + 2 * 3) / 6
    for rank, (of_host, of_all, before) in enumerate([first, second, third]):
        expected = [2.0, 20.0] if rank == 2 else [mean, 10 * mean]
        np.testing.assert_allclose(of_host, expected, rtol=1e-15)
        np.testing.assert_allclose(of_all, [pooled, 10 * pooled], rtol=1e-15)
        np.testing.assert_allclose(before, [rank, of_host[0]], rtol=1e-15)


def test_repr_shows_the_schedule() -> None:
    assert repr(ModelAverager(every(3), solo())) == "ModelAverager(every(3))"
