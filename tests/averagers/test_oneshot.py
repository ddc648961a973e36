"""One average of plain arrays, arenas or gradients, now."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    NON_MEMBER,
    Communicator,
    MismatchError,
    average_parameters,
    run_threads,
)
from workers import assert_named_by_all, filled, outcomes


def test_one_average_of_plain_arrays_in_place() -> None:
    def work(comm: Communicator) -> list[list[float]]:
        base = np.zeros((3, 4))
        strided = base[:, ::2]
        strided[...] = comm.rank
        plain = np.full((2, 2), 4.0 * comm.rank, np.float32)
        average_parameters([plain, strided], comm)
        assert base[:, 1::2].tolist() == [[0.0] * 2] * 3
        return [plain.reshape(-1).tolist(), strided.reshape(-1).tolist()]

    assert run_threads(3, work) == [[[4.0] * 4, [1.0] * 6]] * 3


def test_one_average_of_an_arena_its_gradients_or_a_mapping() -> None:
    def work(comm: Communicator) -> None:
        arena = filled(comm, comm.rank)
        arena.grad.flat[...] = 10.0 * comm.rank
        average_parameters(arena)
        average_parameters(arena.grad, comm)
        named = {"a": np.array(3.0 * comm.rank)}
        average_parameters(named, comm)
        assert arena.flat.tolist() == [1.0] * 3
        assert arena.grad.flat.tolist() == [10.0] * 3
        assert named["a"] == 3.0

    run_threads(3, work)


def test_one_average_by_no_member_changes_nothing() -> None:
    array = np.ones(2)
    average_parameters([array], NON_MEMBER)
    assert array.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([np.zeros(2, int)], TypeError, "must be one of float16"),
        ([], ValueError, "at least one"),
        (3.0, TypeError, "params must be arenas or numpy arrays, got 3.0"),
        ([[1.0]], TypeError, "must be a plain numpy array, got a list"),
    ],
)
def test_one_average_of_invalid_arrays_is_an_error_on_all(
    params: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        average_parameters(params if comm.rank == 1 else [np.zeros(2)], comm)

    assert_named_by_all(outcomes(2, work), error, message, "params")


def test_one_average_of_different_arrays_is_an_error_on_all() -> None:
    for outcome in outcomes(2, lambda comm: average_parameters([np.zeros(2 + comm.rank)], comm)):
        assert isinstance(outcome, MismatchError)
        assert "array 0 float64[2] on rank 0; array 0 float64[3] on rank 1" in str(outcome)
