"""Merges of copies: weights, closed form 15, the outer step, and who is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from localsgd import outer
from localsgd.decoupled import Copy, Merged, Merging, directional

WHOLE = [slice(0, 4)]


def copies(*values: Sequence[float], tokens: Sequence[int] = (), steps: int = 1) -> list[Copy]:
    counts = tokens or [1] * len(values)
    return [
        Copy(rank, 1, count, steps, [np.array(numbers, np.float64)])
        for rank, (numbers, count) in enumerate(zip(values, counts, strict=True))
    ]


def merged(start: Sequence[float], merging: Merging, optimizer: Any = None) -> Merged:
    values = np.array(start, np.float64)
    return Merged([values], [{"w": slice(0, values.size)}], optimizer, merging)


def test_a_worker_weighs_its_tokens_times_tokens_per_step() -> None:
    """8 tokens in 4 steps weigh 8 · 2 = 16, in 2 steps 8 · 4 = 32; no steps weigh nothing."""
    assert Copy(0, 1, 8, 4, []).weight == 16.0
    assert Copy(0, 1, 8, 2, []).weight == 32.0
    assert Copy(0, 1, 8, 0, []).weight == 0.0


def test_the_weighted_mean_is_by_those_weights() -> None:
    """Tokens 1 and 2 in one step weigh 1 and 4: (10 · 1 + 0 · 4) / 5 = 2."""
    state = merged([5.0], Merging("mean"))
    state.take(copies([10.0], [0.0], tokens=[1, 2]))
    assert state.anchor[0].tolist() == [2.0]


def test_nesterov_steps_from_the_last_merge_by_hand() -> None:
    """From 1 with mean 0, so delta 1: buffer 1, 1 - 0.5 (1 + 0.5 · 1) = 0.25.

    Then mean 0 again, delta 0.25: buffer 0.75, 0.25 - 0.5 (0.25 + 0.5 · 0.75) = -0.0625.
    """
    state = merged([1.0], Merging("mean"), outer.SGD(0.5, momentum=0.5, nesterov=True))
    state.take(copies([1.0], [-1.0]))
    assert state.anchor[0].tolist() == [0.25]
    state.take(copies([1.0], [-1.0]))
    assert state.anchor[0].tolist() == [-0.0625]
    assert state.steps == 2


@pytest.mark.parametrize("count", [2, 3, 4])
def test_form_15_orthogonal_moves_of_one_norm_keep_it(count: int) -> None:
    """The plain mean of them has R / sqrt(M); the tolerance is of rounding."""
    moves = [-2.0 * np.eye(4)[index] for index in range(count)]
    found = directional(np.zeros(4), moves, [1.0] * count, WHOLE)
    np.testing.assert_allclose(np.linalg.norm(found), 2.0, rtol=1e-14)
    mean = merged([0.0] * 4, Merging("mean"))
    mean.take(copies(*moves))
    np.testing.assert_allclose(np.linalg.norm(mean.anchor[0]), 2.0 / count**0.5, rtol=1e-14)


def test_form_15_of_equal_moves_it_is_their_mean_and_of_one_the_move_itself() -> None:
    """Tolerances of rounding for the first; the second is exact."""
    move = np.array([0.3, -0.1, 2.0, 0.7])
    found = directional(move, [np.zeros(4)] * 3, [1.0, 2.0, 0.5], WHOLE)
    np.testing.assert_allclose(found, move, rtol=1e-14)
    assert directional(move, [np.zeros(4)], [3.0], WHOLE).tobytes() == move.tobytes()


def test_directions_that_cancel_become_the_weighted_mean() -> None:
    """Moves 3 and -1 along one axis: directions cancel, (3 - 1) / 2 = 1 does not."""
    found = directional(np.zeros(1), [np.array([-3.0]), np.array([1.0])], [1, 1], [slice(0, 1)])
    assert found.tolist() == [1.0]


def test_tensors_keep_their_own_norms_and_plain_ones_take_the_mean() -> None:
    """Two moves of norm 1 along different axes, in both tensors; 0.5 each is their mean."""
    anchor, parts = np.zeros(4), [-np.array([1.0, 0, 1, 0]), -np.array([0, 1.0, 0, 1])]
    found = directional(anchor, parts, [1.0, 1.0], [slice(0, 2)])
    np.testing.assert_allclose(found[:2], np.full(2, 0.5**0.5), rtol=1e-15)
    assert found[2:].tolist() == [0.5, 0.5]
    state = Merged(
        [anchor], [{"a": slice(0, 2), "e": slice(2, 4)}], None, Merging("directions", ["e"])
    )
    state.take([Copy(rank, 1, 1, 1, [part]) for rank, part in enumerate(parts)])
    assert state.anchor[0].tobytes() == (-found).tobytes()


def test_the_order_of_ranks_and_not_of_arrival_makes_the_bits() -> None:
    values = np.random.default_rng(0).normal(size=(3, 50))
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        state = merged([0.0] * 50, Merging())
        mixed = [Copy(r, 1, r + 1, 1, [values[r]]) for r in order]
        state.take(sorted(mixed, key=lambda copy: copy.rank))
        found.append(state.anchor[0].tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_who_is_not_finite_is_left_out(bad: float) -> None:
    found = merged([0.0, 0.0], Merging()).left_out(copies([1.0, 1.0], [bad, 1.0]))
    assert found == {1: "its parameters are not finite"}


def test_who_is_far_outside_the_others_norms_is_left_out() -> None:
    """1000 is not over 100 times 10, 1001 is; of two nobody can say who is wrong."""
    state = merged([0.0], Merging(farthest=100.0))
    assert state.left_out(copies([10.0], [-10.0], [1000.0])) == {}
    found = state.left_out(copies([10.0], [-10.0], [1001.0]))
    assert found == {2: "its delta has norm 1e+03, the others' median is 10"}
    assert state.left_out(copies([10.0], [1e9])) == {}
    assert merged([0.0], Merging(farthest=None)).left_out(copies([1.0], [1.0], [1e9])) == {}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"how": "median"}, ValueError, "merging must be one of directions, mean, got 'median'"),
        ({"plain": "w"}, TypeError, "plain must be names of parameters, got 'w'"),
        ({"farthest": 0.5}, ValueError, "farthest must be at least 1, got 0.5"),
    ],
)
def test_what_is_no_way_to_merge_is_named(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Merging(**given)


def test_a_saved_fragment_goes_on_and_another_is_refused() -> None:
    nesterov = outer.SGD(0.5, momentum=0.5, nesterov=True)
    first, second = (merged([1.0, 2.0], Merging("mean"), nesterov) for _ in range(2))
    first.take(copies([0.0, 1.0], [1.0, 1.0]))
    second.load_state_dict(first.state_dict())
    for state in (first, second):
        state.take(copies([0.0, 0.5], [1.0, 1.0]))
    assert first.anchor[0].tobytes() == second.anchor[0].tobytes()
    with pytest.raises(ValueError, match="a saved fragment must have arrays of"):
        merged([1.0], Merging("mean"), nesterov).load_state_dict(first.state_dict())
