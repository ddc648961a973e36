"""Random numbers of a worker: its own, repeatable, and saved."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from localsgd import Communicator, MismatchError, RandomStreams, ShardSampler, run_threads, solo
from workers import outcomes


def draws(comm: Communicator, seed: Any = 5) -> tuple[list[float], list[float]]:
    random = RandomStreams(seed, comm)
    return random.shared.random(4).tolist(), random.own.random(4).tolist()


def test_shared_numbers_are_equal_and_own_numbers_differ() -> None:
    drawn = run_threads(4, draws)
    assert len({tuple(shared) for shared, _ in drawn}) == 1
    assert len({tuple(numbers) for pair in drawn for numbers in pair}) == 5


def test_a_ranks_numbers_do_not_depend_on_how_many_ranks_there_are() -> None:
    assert run_threads(2, draws) == run_threads(3, draws)[:2]


def test_seeds_give_numbers_of_their_own() -> None:
    assert len({draws(solo(), seed)[1][0] for seed in (5, 6, (5, 0), (5, 1))}) == 4


def test_streams_and_the_order_of_samples_share_no_numbers() -> None:
    orders = [np.random.default_rng(np.random.SeedSequence(5)).permutation(30).tolist()]
    random = RandomStreams(5, solo())
    orders += [random.shared.permutation(30).tolist(), random.own.permutation(30).tolist()]
    sampler = ShardSampler(30, 30, seed=5, comm=solo())
    orders += [next(iter(sampler)).tolist()]
    assert len({tuple(order) for order in orders}) == 4


def test_resume_equals_never_stopped() -> None:
    def work(comm: Communicator) -> None:
        random = RandomStreams(5, comm)
        random.own.normal(size=3 + comm.rank)
        random.own.integers(10, dtype=np.uint32)
        random.shared.random(7)
        saved = json.dumps(random.state_dict())
        expected = [random.own.random(5).tolist(), random.shared.random(5).tolist()]
        resumed = RandomStreams(0, comm)
        own, shared = resumed.own, resumed.shared
        resumed.load_state_dict(json.loads(saved))
        assert [own.random(5).tolist(), shared.random(5).tolist()] == expected

    run_threads(3, work)


def test_a_rank_that_was_not_saved_joins_the_shared_stream() -> None:
    def save(comm: Communicator) -> dict[str, Any]:
        random = RandomStreams(5, comm)
        random.shared.random(7)
        random.own.random(7)
        return random.state_dict()

    saved = run_threads(2, save)

    def load(comm: Communicator) -> tuple[float, float]:
        random = RandomStreams(5, comm)
        state = saved[comm.rank] if comm.rank < 2 else {"shared": saved[0]["shared"]}
        random.load_state_dict(state)
        return random.shared.random(), random.own.random()

    drawn = run_threads(3, load)
    assert len({shared for shared, _ in drawn}) == 1
    fresh = run_threads(3, lambda comm: RandomStreams(5, comm).own.random())
    assert [own == first for (_, own), first in zip(drawn, fresh, strict=True)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 1}, "rank must be 0 as here, got 1"),
        ({"own": 3}, "own must be the state of a PCG64 generator"),
        ({"own": {"bit_generator": "MT19937"}}, "own must be the state of a PCG64 generator"),
        ({"shared": {}}, "shared must be the state of a PCG64 generator"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    random = RandomStreams(5, solo())
    before = random.state_dict()
    drawn = RandomStreams(6, solo())
    with pytest.raises(ValueError, match=message):
        random.load_state_dict({**drawn.state_dict(), **change})
    with pytest.raises(ValueError, match="the state dict of random streams must have 'shared'"):
        random.load_state_dict({"rank": 0, "own": before["own"]})
    assert random.state_dict() == before


def test_ranks_must_agree_on_seed_and_on_the_shared_stream() -> None:
    for outcome in outcomes(3, lambda comm: RandomStreams(comm.rank // 2, comm)):
        with pytest.raises(MismatchError, match=r"seed \[0\] on ranks 0, 1; seed \[1\] on rank 2"):
            raise outcome

    def work(comm: Communicator) -> None:
        random = RandomStreams(0, comm)
        random.shared.random(comm.rank // 2)
        random.load_state_dict(random.state_dict())

    for outcome in outcomes(3, work):
        with pytest.raises(MismatchError, match="shared .* on ranks 0, 1; shared .* on rank 2"):
            raise outcome
