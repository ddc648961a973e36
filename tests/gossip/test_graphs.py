"""Graphs: their weights, what is checked of them, and how fast they bring workers together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import gossip

GRAPHS = {
    "ring": gossip.ring(),
    "torus": gossip.torus(),
    "exponential": gossip.exponential(),
    "one-peer": gossip.one_peer_exponential(),
    "pairs": gossip.random_pairs(3),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 9, 16])
def test_weights_are_doubly_stochastic_for_any_number_of_workers(name: str, size: int) -> None:
    for round in range(5):
        weights = GRAPHS[name].matrix(size, round)
        gossip.check_stochastic(weights, rows=True)
        assert weights.shape == (size, size) and (np.diag(weights) > 0).all()
        np.testing.assert_array_equal(weights, GRAPHS[name].matrix(size, round))


@pytest.mark.parametrize(
    ("size", "second"),
    [(4, 1 / 3), (8, 0.80474), (9, 0.84403), (16, 0.94925), (25, 0.97906), (64, 0.99679)],
)
def test_a_rings_gap_is_the_closed_form(size: int, second: float) -> None:
    """Closed form 8: the second eigenvalue is (1 + 2 cos(2 pi / n)) / 3."""
    exact = (1 + 2 * np.cos(2 * np.pi / size)) / 3
    assert exact == pytest.approx(second, abs=1e-5)
    assert gossip.spectral_gap(gossip.ring(), size) == pytest.approx(1 - exact, abs=1e-12)


def test_a_torus_takes_four_neighbours() -> None:
    """Of 3 x 4, worker 5 = (1, 1): 4 and 6 beside it, 1 and 9 above and below."""
    row = gossip.torus().matrix(12)[5]
    assert {rank: w for rank, w in enumerate(row) if w} == dict.fromkeys([1, 4, 5, 6, 9], 0.2)
    assert (gossip.torus(2).matrix(12)[0] > 0).nonzero()[0].tolist() == [0, 1, 5, 6]


def test_one_peer_after_another_gives_all_the_mean() -> None:
    """Closed form 8: after k rounds of 2^k workers the product is the matrix of 1/n."""
    for power in range(1, 6):
        size = 2**power
        whole = np.eye(size)
        for round in range(power):
            whole = gossip.one_peer_exponential().matrix(size, round) @ whole
        np.testing.assert_array_equal(whole, np.full((size, size), 1 / size))


def test_exponential_takes_all_distances_at_once() -> None:
    row = gossip.exponential().matrix(8)[0]
    assert {rank: w for rank, w in enumerate(row) if w} == dict.fromkeys([0, 7, 6, 4], 0.25)


def test_random_pairs_contract_as_the_closed_form() -> None:
    """Closed form 8: E |spread|² shrinks by (n - 2) / (2 (n - 1)); all matchings of 4 are 3.

    2,000 draws: the share of each matching within 5 sqrt(p (1 - p) / n) = 0.053 of a third.
    """
    values = np.array([3.0, -1.0, 0.5, -2.5])
    spread, counts = [], {}
    for round in range(2000):
        weights = gossip.random_pairs(0).matrix(4, round)
        counts[weights.tobytes()] = counts.get(weights.tobytes(), 0) + 1
        spread.append(np.square(weights @ values).sum())
    assert len(counts) == 3
    assert all(abs(count / 2000 - 1 / 3) < 0.053 for count in counts.values())
    of_all = [np.square(np.frombuffer(key).reshape(4, 4) @ values).sum() for key in counts]
    expected = (4 - 2) / (2 * (4 - 1)) * np.square(values).sum()
    assert np.mean(of_all) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "rows", "message"),
    [
        ([[0.5, 0.5], [0.6, 0.5]], True, "every row .* got 1.1 in row 1"),
        ([[0.5, 0.5], [0.6, 0.4]], True, "every column .* got 1.1 in column 0"),
        ([[0.9, 0.5], [0.2, 0.5]], False, "every column .* got 1.1 in column 0"),
        ([[1.5, -0.5], [-0.5, 1.5]], True, "finite and at least 0, got -0.5"),
        ([[np.nan, 1.0], [1.0, 0.0]], True, "finite and at least 0, got nan"),
    ],
)
def test_matrices_that_are_not_stochastic_are_refused(
    weights: Any, rows: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gossip.check_stochastic(gossip.matrix(weights).matrix(2), rows=rows)


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be square, got shape"):
        gossip.matrix([[1.0, 0.0]])
    with pytest.raises(ValueError, match="a row for each of 3 workers, got 2"):
        gossip.matrix(np.eye(2)).matrix(3)
    with pytest.raises(ValueError, match="rows must divide the 6 workers, got 4"):
        gossip.torus(4).matrix(6)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        gossip.random_pairs(-1)


def test_columns_that_sum_to_1_are_enough_where_rows_are_not_asked_for() -> None:
    weights = np.array([[0.5, 0.0, 1 / 3], [0.5, 0.5, 1 / 3], [0.0, 0.5, 1 / 3]])
    gossip.check_stochastic(weights, rows=False)
