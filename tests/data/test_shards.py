"""Every sample exactly once an epoch, whoever takes it and however often the run stops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from localsgd import Communicator, MismatchError, ShardSampler, run_threads, solo
from workers import assert_named_by_all, outcomes


def shards(size: int, samples: int, batch_size: int, **options: Any) -> list[ShardSampler]:
    return [
        ShardSampler(samples, batch_size, rank=rank, size=size, **{"seed": 3, **options})
        for rank in range(size)
    ]


def flat(batches: Sequence[np.ndarray]) -> list[int]:
    return [int(index) for batch in batches for index in batch]


def epoch_of(samplers: Sequence[ShardSampler]) -> list[int]:
    return [index for sampler in samplers for index in flat(list(sampler))]


@pytest.mark.parametrize("samples", [6, 7, 23, 24, 25, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_every_sample_is_dealt_exactly_once_an_epoch(size: int, samples: int) -> None:
    samplers = shards(size, samples, batch_size=4)
    for _ in range(3):
        assert sorted(epoch_of(samplers)) == list(range(samples))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_drop_deals_full_batches_only_and_leaves_out_the_last_group(size: int) -> None:
    samplers = shards(size, 26, batch_size=4, remainder="drop")
    dealt = [list(sampler) for sampler in samplers]
    assert {len(batch) for batches in dealt for batch in batches} == {4}
    assert {len(batches) for batches in dealt} == {26 // (4 * size)}
    indices = [index for batches in dealt for index in flat(batches)]
    assert len(set(indices)) == len(indices) == 26 // (4 * size) * 4 * size


def test_the_deal_is_a_group_at_a_time_like_cards() -> None:
    """Groups of 2 · 3 of 0..13: [0..5], [6..11], [12, 13]; ranks take every third of each."""
    dealt = [[batch.tolist() for batch in s] for s in shards(3, 14, batch_size=2, shuffle=False)]
    assert dealt == [
        [[0, 3], [6, 9], [12]],
        [[1, 4], [7, 10], [13]],
        [[2, 5], [8, 11]],
    ]


@pytest.mark.parametrize("remainder", ["keep", "drop"])
@pytest.mark.parametrize("samples", [13, 24, 25, 35])
def test_lengths_are_those_of_the_loop(samples: int, remainder: str) -> None:
    samplers = shards(3, samples, batch_size=4, remainder=remainder)
    counts = [len(list(sampler)) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == counts
    assert {sampler.steps_per_epoch for sampler in samplers} == {max(counts)}


def test_workers_with_samples_of_their_own_have_any_number_of_batches() -> None:
    def work(comm: Communicator) -> tuple[int, list[int]]:
        count = (3, 6, 15, 39)[comm.rank]
        sampler = ShardSampler(count, 3, seed=(7, comm.rank), rank=0, size=1)
        batches = list(sampler)
        return len(batches), sorted(flat(batches))

    dealt = run_threads(4, work)
    assert [batches for batches, _ in dealt] == [1, 2, 5, 13]
    assert [indices for _, indices in dealt] == [list(range(n)) for n in (3, 6, 15, 39)]


def test_epochs_seeds_and_workers_with_their_own_samples_have_orders_of_their_own() -> None:
    sampler = ShardSampler(50, 50, seed=3, rank=0, size=1)
    orders = [flat(list(sampler)) for _ in range(3)]
    for seed in (4, (3, 0), (3, 1)):
        orders.append(flat(list(ShardSampler(50, 50, seed=seed, rank=0, size=1))))
    assert len({tuple(order) for order in orders}) == 6
    again = ShardSampler(50, 50, seed=3, rank=0, size=1)
    assert [flat(list(again)) for _ in range(3)] == orders[:3]


def test_the_order_does_not_depend_on_the_number_of_workers() -> None:
    """With equal groups of 12 every step's workers share the same samples."""

    def groups(size: int) -> list[list[int]]:
        dealt = [list(sampler) for sampler in shards(size, 48, batch_size=12 // size)]
        return [sorted(flat([batches[step] for batches in dealt])) for step in range(4)]

    assert groups(1) == groups(2) == groups(3) == groups(4)


def test_a_batch_may_be_changed() -> None:
    sampler = ShardSampler(6, 3, seed=0, shuffle=False)
    for batch in sampler:
        batch += 100
    assert flat(list(sampler)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("stop", range(10))
def test_resume_equals_never_stopped(stop: int) -> None:
    """Stopped anywhere in two epochs of 4 or 5 batches, between epochs too."""

    def steps(sampler: ShardSampler) -> list[tuple[int, list[int]]]:
        taken = []
        while sampler.epoch < 2:
            for batch in sampler:
                taken.append((sampler.epoch, batch.tolist()))
                states.append(json.dumps(sampler.state_dict()))
        return taken

    for rank in range(2):
        states: list[str] = []
        whole = steps(ShardSampler(17, 2, seed=5, rank=rank, size=2))
        saved = json.loads(states[min(stop, len(whole) - 1)])
        resumed = ShardSampler(17, 2, seed=5, rank=rank, size=2)
        resumed.load_state_dict(saved)
        assert steps(resumed) == whole[stop + 1 :]


def test_leaving_the_loop_keeps_the_position() -> None:
    sampler = ShardSampler(10, 2, seed=0, shuffle=False)
    for batch in sampler:
        if 4 in batch:
            break
    assert (sampler.epoch, sampler.position) == (0, 6)
    assert flat(list(sampler)) == [6, 7, 8, 9]
    assert (sampler.epoch, sampler.position) == (1, 0)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (1, 4), (4, 1)])
def test_another_number_of_workers_takes_over_what_is_left(before: int, after: int) -> None:
    def first(comm: Communicator) -> tuple[list[int], dict[str, Any]]:
        sampler = ShardSampler(50, 3, seed=9, comm=comm)
        list(sampler)
        taken: list[np.ndarray] = []
        for batch in sampler:
            taken.append(batch)
            if len(taken) == 2:
                break
        return flat(taken), sampler.state_dict()

    started = run_threads(before, first)
    (state,) = {json.dumps(state) for _, state in started}

    def second(comm: Communicator) -> tuple[list[int], list[int]]:
        sampler = ShardSampler(50, 5, seed=9, comm=comm)
        sampler.load_state_dict(json.loads(state))
        assert sampler.epoch == 1
        return flat(list(sampler)), flat(list(sampler))

    ended = run_threads(after, second)
    dealt = [index for indices, _ in started for index in indices]
    dealt += [index for indices, _ in ended for index in indices]
    assert sorted(dealt) == list(range(50))
    assert sorted(index for _, indices in ended for index in indices) == list(range(50))


INVALID: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
    ({"samples": 2.0}, TypeError, "samples must be an integer, got 2.0"),
    ({"samples": 2}, ValueError, "samples must be at least one for each of 3 workers, got 2"),
    (
        {"samples": 11, "remainder": "drop"},
        ValueError,
        "samples must be at least a batch of 4 for each of 3 workers, got 11",
    ),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
    ({"seed": ()}, ValueError, "seed must be one or more integers, got none"),
    ({"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
    ({"remainder": "pad"}, ValueError, "remainder must be 'keep' or 'drop', got 'pad'"),
    ({"rank": 1}, ValueError, "rank and size must be given together and instead of comm"),
    ({"rank": 0, "size": 3}, ValueError, "given together and instead of comm"),
]
VALID: dict[str, Any] = {"samples": 20, "batch_size": 4, "seed": 0}


@pytest.mark.parametrize(("given", "error", "message"), INVALID)
def test_invalid_input_of_one_rank_raises_there_and_names_that_rank_elsewhere(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> ShardSampler:
        return ShardSampler(comm=comm, **{**VALID, **(given if comm.rank == 1 else {})})

    assert_named_by_all(outcomes(3, work), error, message, "samplers")


def test_more_ranks_than_samples_is_an_error_on_every_rank() -> None:
    for outcome in outcomes(4, lambda comm: ShardSampler(3, 1, seed=0, comm=comm)):
        assert type(outcome) is ValueError
        assert "samples must be at least one for each of 4 workers, got 3" in str(outcome)


@pytest.mark.parametrize(
    ("name", "value", "difference"),
    [
        ("samples", 21, "samples=20 on ranks 0, 2; samples=21 on rank 1"),
        ("batch_size", 5, "batch_size=4 on ranks 0, 2; batch_size=5 on rank 1"),
        ("seed", 1, r"seed=\[0\] on ranks 0, 2; seed=\[1\] on rank 1"),
        ("shuffle", False, "shuffle=True on ranks 0, 2; shuffle=False on rank 1"),
        ("remainder", "drop", "remainder='keep' on ranks 0, 2; remainder='drop' on rank 1"),
    ],
)
def test_a_difference_between_ranks_names_the_argument(
    name: str, value: object, difference: str
) -> None:
    def work(comm: Communicator) -> ShardSampler:
        return ShardSampler(comm=comm, **{**VALID, **({name: value} if comm.rank == 1 else {})})

    for outcome in outcomes(3, work):
        with pytest.raises(MismatchError, match=f"must be equal on every rank, got {difference}"):
            raise outcome


@pytest.mark.parametrize(("rank", "size"), [(3, 3), (-1, 3), (0, 0)])
def test_a_shard_must_exist(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match="must be (below size|at least)"):
        ShardSampler(20, 4, seed=0, rank=rank, size=size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 21}, "samples must be 20 as in this sampler, got 21"),
        ({"seed": [1]}, r"seed must be \[0\] as in this sampler, got \[1\]"),
        ({"shuffle": False}, "shuffle must be True as in this sampler, got False"),
        ({"position": 21}, "position must be at most 20 samples, got 21"),
        ({"epoch": -1}, "epoch must be at least 0, got -1"),
        ({"order": 7}, "the order of epoch 1 must be the one it was saved with"),
        ({"order": None}, "the order of epoch 1 must be the one it was saved with"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    saved = ShardSampler(comm=solo(), **VALID)
    list(saved)
    sampler = ShardSampler(comm=solo(), **VALID)
    next(iter(sampler))
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**saved.state_dict(), **change})
    state = saved.state_dict()
    del state["position"]
    with pytest.raises(ValueError, match="the state dict of a sampler must have 'position'"):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == before


def test_ranks_that_load_different_positions_are_named() -> None:
    def work(comm: Communicator) -> None:
        sampler = ShardSampler(comm=comm, **VALID)
        if comm.rank == 2:
            next(iter(sampler))
        sampler.load_state_dict(sampler.state_dict())

    for outcome in outcomes(3, work):
        with pytest.raises(MismatchError, match="epoch 0, sample 0 on ranks 0, 1; epoch 0, sample"):
            raise outcome
