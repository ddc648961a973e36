"""Named parameters in one buffer, equal on all ranks."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import Arena, Buffers, Communicator, FlatArrays, MismatchError, run_threads, solo
from workers import LAYOUTS, assert_named_by_all, outcomes

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def values(rank: int = 0, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    return {
        "w": (np.arange(6).reshape(2, 3) + 10 * rank).astype(dtype),
        "scale": np.array(3 + rank, dtype),
        "none": np.zeros((0, 4), dtype),
        "b": np.full(2, rank, dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_shaped_views_of_one_buffer_in_order(dtype: Any) -> None:
    arena = Arena(values(1, dtype), solo())
    assert list(arena) == list(arena.names) == ["w", "scale", "none", "b"]
    assert [array.shape for array in arena.values()] == [(2, 3), (), (0, 4), (2,)]
    assert arena.dtype == arena.flat.dtype == dtype
    assert arena.flat.tolist() == [10, 11, 12, 13, 14, 15, 4, 1, 1]
    assert arena.slice_of("b") == slice(7, 9)
    arena["b"][...] = 5
    assert arena.flat.tolist()[7:] == [5, 5]
    assert np.shares_memory(arena["w"], arena.flat)


def test_the_given_arrays_are_copied() -> None:
    given = values()
    arena = Arena(given, solo())
    arena.flat[...] = 7
    assert given["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not np.shares_memory(given["w"], arena.flat)


def test_gradients_are_a_twin_that_starts_at_zero() -> None:
    arena = Arena(values(1), solo())
    assert isinstance(arena.grad, FlatArrays)
    assert arena.grad.names == arena.names
    assert arena.grad is arena.grad
    assert arena.grad.flat.tolist() == [0] * 9
    arena.grad["b"] += 2.0
    assert arena.grad.flat.tolist() == [0] * 7 + [2, 2]
    assert arena["b"].tolist() == [1, 1]


def test_assignment_copies_into_the_view() -> None:
    arena = Arena(values(), solo())
    view = arena["w"]
    arena["w"] = np.ones((2, 3))
    arena["scale"] = 4
    assert arena["w"] is view
    assert arena.flat.tolist() == [1, 1, 1, 1, 1, 1, 4, 0, 0]


def test_assignment_must_fit() -> None:
    arena = Arena(values(), solo())
    with pytest.raises(ValueError, match=r"'w' must have shape \(2, 3\), got \(3,\)"):
        arena["w"] = np.ones(3)
    for given in (np.ones(2, complex), np.array(["1", "2"]), np.ones(2, [("x", float)])):
        with pytest.raises(TypeError, match="'b' must be given real numbers, got"):
            arena["b"] = given
    with pytest.raises(KeyError):
        arena["other"] = np.ones(2)
    assert arena.flat.tolist() == Arena(values(), solo()).flat.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_all_workers_start_from_the_values_of_rank_0(size: int, hosts: str, dtype: Any) -> None:
    flats = run_threads(
        size, lambda comm: Arena(values(comm.rank, dtype), comm).flat.copy(), hosts=hosts
    )
    for flat in flats:
        assert flat.tolist() == [0, 1, 2, 3, 4, 5, 3, 0, 0]


def test_a_checked_start_accepts_equal_values() -> None:
    run_threads(3, lambda comm: Arena(values(1), comm, start="check"))


def test_a_checked_start_names_the_first_parameter_and_the_ranks_that_differ() -> None:
    def work(comm: Communicator) -> Arena:
        given = values()
        if comm.rank in (1, 3):
            given["b"][1] = 9
        return Arena(given, comm, start="check")

    for outcome in outcomes(4, work):
        assert isinstance(outcome, MismatchError)
        assert "start='check'" in str(outcome)
        words = r"got parameter 'b' with digest \w+ on ranks 0, 2; .*'b' .* on ranks 1, 3$"
        assert re.search(words, str(outcome))


def renamed(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {("v" if name == "scale" else name): array for name, array in given.items()}


def test_differing_layouts_name_the_first_difference_on_every_rank() -> None:
    cases: list[tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = [
        (renamed, "parameter 'scale' float64[] on ranks 0, 2; parameter 'v' float64[] on rank 1"),
        (
            lambda given: dict(reversed(given.items())),
            "parameter 'w' float64[2, 3] on ranks 0, 2; parameter 'b' float64[2] on rank 1",
        ),
        (
            lambda given: {**given, "w": given["w"].T.copy()},
            "parameter 'w' float64[2, 3] on ranks 0, 2; parameter 'w' float64[3, 2] on rank 1",
        ),
        (
            lambda given: {name: array.astype(np.float32) for name, array in given.items()},
            "parameter 'w' float64[2, 3] on ranks 0, 2; parameter 'w' float32[2, 3] on rank 1",
        ),
        (
            lambda given: {**given, "extra": np.zeros(1)},
            "start='broadcast' on ranks 0, 2; parameter 'extra' float64[1] on rank 1",
        ),
    ]
    for change, difference in cases:

        def work(comm: Communicator, change: Any = change) -> Arena:
            return Arena(change(values()) if comm.rank == 1 else values(), comm)

        for outcome in outcomes(3, work):
            assert isinstance(outcome, MismatchError)
            assert str(outcome) == f"parameters must be equal on every rank, got {difference}"


def test_ranks_must_start_in_the_same_way() -> None:
    def work(comm: Communicator) -> Arena:
        return Arena(values(), comm, start="check" if comm.rank else "broadcast")

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert "start='broadcast' on rank 0; start='check' on rank 1" in str(outcome)


def read_only() -> np.ndarray:
    array = np.zeros(3)
    array.flags.writeable = False
    return array


SHARED = np.zeros(6)
INVALID: list[tuple[Any, type[Exception], str]] = [
    ([np.zeros(3)], TypeError, "params must be a mapping of names to arrays, got a list"),
    ({}, ValueError, "params must hold at least one parameter, got none"),
    ({1: np.zeros(3)}, TypeError, "parameter names must be strings, got 1"),
    ({"w": [1.0, 2.0]}, TypeError, "parameter 'w' must be a plain numpy array, got a list"),
    ({"w": np.float64(3)}, TypeError, "parameter 'w' must be a plain numpy array, got a float64"),
    ({"w": np.ma.zeros(3)}, TypeError, "parameter 'w' must be a plain numpy array"),
    ({"w": np.zeros(3, int)}, TypeError, "parameter 'w' must be one of float16, bfloat16, float32"),
    ({"w": np.zeros(3, complex)}, TypeError, "parameter 'w' must be one of"),
    ({"w": np.zeros(3, ">f4")}, TypeError, "parameter 'w' must be one of .* got >f4"),
    ({"v": np.zeros(3), "w": read_only()}, ValueError, "'w' must be writeable, got a read-only"),
    (
        {"v": np.zeros(3), "w": np.zeros(3, np.float32)},
        ValueError,
        "one dtype, got 'v' float64 and 'w' float32: make an arena for each dtype",
    ),
    (
        {"u": np.zeros(2), "v": SHARED[:4], "w": SHARED[2:]},
        ValueError,
        "parameters must not overlap in memory, got 'v' and 'w'",
    ),
    ({"v": SHARED, "w": SHARED}, ValueError, "must not overlap in memory, got 'v' and 'w'"),
    (
        {"w": np.lib.stride_tricks.as_strided(SHARED, (3, 6), (0, 8), writeable=True)},
        ValueError,
        "'w' must not overlap itself",
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), INVALID)
def test_invalid_input_of_one_rank_raises_there_and_names_that_rank_elsewhere(
    given: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> Arena:
        return Arena(given if comm.rank == 1 else values(), comm)

    assert_named_by_all(outcomes(3, work), error, message, "parameters")


def test_interleaved_arrays_that_share_no_element_are_accepted() -> None:
    arena = Arena({"even": SHARED[::2], "odd": SHARED[1::2]}, solo())
    assert arena.flat.shape == (6,)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(
        ValueError, match="start must be 'broadcast', 'check' or 'keep', got 'sync'"
    ):
        Arena(values(), solo(), start="sync")  # type: ignore[arg-type]


def test_a_closed_communicator_is_refused() -> None:
    comm = solo()
    comm.close()
    with pytest.raises(ValueError, match="closed"):
        Arena(values(), comm)


def test_subsets_keep_the_order_of_the_arena() -> None:
    arena = Arena(values(), solo())
    assert arena.subset(["b", "w"]).names == ("w", "b")
    assert arena.subset("b").names == ("b",)
    with pytest.raises(ValueError, match="names must be parameters of the arena, got 'x'"):
        arena.subset(["w", "x"])
    with pytest.raises(ValueError, match="names must be distinct"):
        arena.subset(["w", "w"])


def test_named_views_are_neither_copied_nor_pickled() -> None:
    """Copies of the arrays would not be views of one buffer any more."""
    arena = Arena(values(), solo())
    for views in (arena, arena.grad, Buffers({"mean": np.zeros(2)}, comm=solo())):
        with pytest.raises(TypeError, match="must stay with its memory"):
            pickle.dumps(views)
        with pytest.raises(TypeError, match="copy the values instead"):
            copy.deepcopy(views)


def test_an_arena_can_be_made_from_an_arena() -> None:
    arena = Arena(values(2), solo())
    twin = Arena(arena, solo())
    assert twin.flat.tolist() == arena.flat.tolist()
    assert twin != arena
    assert not np.shares_memory(twin.flat, arena.flat)


def test_repr_shows_shapes_size_dtype_and_rank() -> None:
    arena = Arena(values(), solo())
    words = "w[2, 3], scale[], none[0, 4], b[2]: 9 elements of float64"
    assert repr(arena) == f"Arena({words}, rank 0 of 1)"
    assert repr(arena.grad) == f"FlatArrays({words})"
    many = Arena({f"p{index}": np.zeros(1) for index in range(9)}, solo())
    assert "p5[1], and 3 more: 9 elements" in repr(many)


def test_with_keep_every_rank_starts_from_its_own_values() -> None:
    def values(comm: Communicator) -> list[float]:
        arena = Arena({"w": np.full(2, float(comm.rank))}, comm, start="keep")
        return arena["w"].tolist()

    assert run_threads(3, values) == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_gradients_can_be_added_later() -> None:
    arena = Arena({"w": np.ones(2)}, solo(), grad=False)
    with pytest.raises(ValueError, match="add_grad"):
        _ = arena.grad
    arena.add_grad()
    grad = arena.grad
    arena.add_grad()
    assert arena.grad is grad
    assert grad["w"].tolist() == [0.0, 0.0]


def test_a_section_is_the_same_memory() -> None:
    arena = Arena({"a": np.ones(2), "b": np.ones((2, 2)), "c": np.ones(1)}, solo())
    section = arena.section(["b", "c"])
    assert np.shares_memory(section.flat, arena.flat)
    section["c"][0] = 5.0
    section.grad["b"][0, 0] = 7.0
    assert arena["c"][0] == 5.0
    assert arena.grad.flat.tolist() == [0.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="neighbours"):
        arena.section(["a", "c"])
