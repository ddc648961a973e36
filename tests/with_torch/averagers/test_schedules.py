"""C1 to C3 and C6 to C8: when the averagers average, and what they count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.distributed.algorithms.model_averaging import hierarchical_model_averager as torch_levels
from torch.nn import Parameter

import localsgd.torch as lt
from localsgd import MismatchError, run_threads, solo
from torch_ranks import run_ranks


def parameter(value: float) -> Parameter:
    made = Parameter(torch.full((3,), value))
    made.grad = torch.ones(3)
    return made


def fires(averager: Any, rank: int, steps: int) -> list[tuple[int, list[float]]]:
    """The steps, counted from 0, at which a worker's value moved, and the value."""
    found = []
    for step in range(steps):
        param = parameter(float(rank) + 0.25)
        averager.average_parameters(iter([param]))
        if param[0].item() != rank + 0.25:
            found.append((step, [round(value, 4) for value in param.tolist()]))
    return found


@pytest.mark.parametrize(
    ("period", "warmup", "expected"),
    [
        (4, 0, [0, 4, 8, 12]),
        (4, 10, [10, 14, 18]),
        (4, 13, [13, 17]),
        (3, 4, [4, 7, 10, 13, 16, 19]),
    ],
)
def test_periodic_fires_in_torchs_steps(period: int, warmup: int, expected: list[int]) -> None:
    """C1: rule P5, and torch in the same processes."""

    def body(rank: int) -> Any:
        ours = fires(lt.PeriodicModelAverager(period, warmup), rank, expected[-1] + 1)
        theirs = fires(
            torch_averagers.PeriodicModelAverager(period, warmup), rank, expected[-1] + 1
        )
        return ours, theirs

    for ours, theirs in run_ranks(2, body):
        assert [step for step, _ in ours] == expected
        assert ours == theirs


@pytest.mark.parametrize(
    ("levels", "warmup", "expected"),
    [
        ({2: 2, 4: 4}, 0, {0: 4, 2: 2, 4: 4, 6: 2, 8: 4}),
        ({2: 2, 4: 2, 8: 4}, 10, {10: 2, 12: 2, 14: 2, 16: 4, 18: 2}),
        ({4: 4}, 13, {16: 4, 20: 4}),
        ({8: 2, 4: 2, 2: 4}, 0, {0: 4, 2: 4, 4: 4, 6: 4, 8: 4}),
        ({2: 2, 3: 4}, 0, {0: 4, 2: 2, 3: 4, 4: 2, 6: 4, 8: 2}),
        ({2: 1, 4: 4}, 0, {0: 4, 4: 4, 8: 4}),
    ],
)
def test_hierarchies_fire_in_torchs_steps(
    levels: dict[int, int], warmup: int, expected: dict[int, int]
) -> None:
    """C1 and C8: rules H6, H9 and H11, with keys that descend and keys that do not divide."""
    steps = max(expected) + 1

    def body(rank: int) -> Any:
        ours = fires(lt.HierarchicalModelAverager(levels, warmup), rank, steps)
        theirs = fires(torch_levels.HierarchicalModelAverager(levels, warmup), rank, steps)
        return ours, theirs

    for rank, (ours, theirs) in enumerate(run_ranks(4, body)):
        assert [step for step, _ in ours] == list(expected)
        assert ours == theirs
        for step, values in ours:
            group = range(
                rank - rank % expected[step], rank - rank % expected[step] + expected[step]
            )
            assert values[0] == sum(member + 0.25 for member in group) / len(group)


def test_three_levels_on_eight_ranks() -> None:
    """C7: ranks hold r; by pair, by four, all; odd steps untouched."""

    def body(rank: int) -> list[float]:
        averager = lt.HierarchicalModelAverager({2: 2, 4: 4, 8: 8})
        values = []
        for _ in range(9):
            param = parameter(float(rank))
            averager.average_parameters([param])
            values.append(param[0].item())
        return values

    for rank, values in enumerate(run_ranks(8, body)):
        pair, four = rank // 2 * 2 + 0.5, rank // 4 * 4 + 1.5
        assert values == [3.5, rank, pair, rank, four, rank, pair, rank, 3.5]


def test_a_hierarchy_shows_its_groups_and_values() -> None:
    """C6: values of H10 on ranks 0 to 3."""

    def body(rank: int) -> Any:
        averager = lt.HierarchicalModelAverager({2: 2, 4: 4})
        groups = averager.period_process_group_dict
        values = []
        for _ in range(5):
            param = parameter(float(rank))
            averager.average_parameters([param])
            values.append(param[0].item())
        return list(groups), [group.size for group in groups.values()], averager.step, values

    pairs = [0.5, 0.5, 2.5, 2.5]
    for rank, (periods, sizes, step, values) in enumerate(run_ranks(4, body)):
        assert (periods, sizes, step) == ([2, 4], [2, 4], 5)
        assert values == [1.5, rank, pairs[rank], rank, 1.5]


def test_a_round_of_a_small_group_does_not_wait_for_the_others() -> None:
    """Nothing goes through the group of all between the rounds of all."""

    def body(comm: Any) -> list[int]:
        averager = lt.HierarchicalModelAverager({1: 2, 4: 4}, process_group=comm)
        param, calls = parameter(float(comm.rank)), []
        for _ in range(4):
            before = comm.traffic.calls
            averager.average_parameters([param])
            calls.append(comm.traffic.calls - before)
        return [int(count > 0) for count in calls]

    assert run_threads(4, body) == [[1, 0, 0, 0]] * 4


def test_an_average_that_raises_is_not_counted() -> None:
    """C2."""
    averager = lt.PeriodicModelAverager(4, process_group=solo())
    with pytest.raises(NotImplementedError, match="Tensor"):
        averager.average_parameters([torch.ones(2)])  # type: ignore[list-item]
    assert averager.step == 0
    averager.average_parameters([parameter(1.0)])
    assert averager.step == 1


def test_a_rank_outside_counts_and_changes_nothing() -> None:
    """C3, and C9 for averagers: with a group of torch's and with one of ours."""

    def body(rank: int) -> Any:
        theirs = dist.new_group([0, 1])
        ours = lt.world().split(0 if rank < 2 else None)
        results = []
        for group in (theirs, ours):
            averager = lt.PeriodicModelAverager(2, process_group=group)
            param = parameter(float(rank))
            for _ in range(3):
                averager.average_parameters([param])
            results.append((averager.step, param[0].item()))
        return results

    expected = [0.5, 0.5, 2.0]
    for rank, results in enumerate(run_ranks(3, body)):
        assert results == [(3, expected[rank])] * 2


def test_a_rank_outside_of_a_hierarchy_takes_no_part_and_spoils_no_group() -> None:
    """H12: torch raises there, and the next group of all times out where it was left out."""

    def body(rank: int) -> Any:
        averager = lt.HierarchicalModelAverager({1: 1, 2: 2}, 0, dist.new_group([0, 1]))
        param = parameter(float(rank))
        for _ in range(3):
            averager.average_parameters([param])
        other = torch.ones(1)
        dist.all_reduce(other, group=dist.new_group([0, 1, 2]))
        return averager.step, param[0].item(), other.item()

    assert run_ranks(3, body) == [(3, 0.5, 3.0), (3, 0.5, 3.0), (3, 2.0, 3.0)]


def test_the_order_of_levels_does_not_matter() -> None:
    """Better than H6, where the smallest period starves the others."""

    def body(rank: int) -> list[Any]:
        return fires(lt.HierarchicalModelAverager({4: 4, 2: 2}), rank, 5)

    assert [step for step, _ in run_ranks(4, body)[0]] == [0, 2, 4]


def test_ranks_that_stand_at_different_steps_get_an_error_on_every_rank() -> None:
    """B2: torch pairs one rank's step 8 with another's step 9."""

    def body(comm: Any) -> str:
        averager = lt.PeriodicModelAverager(4, process_group=comm)
        param = parameter(1.0)
        for _ in range(3):
            averager.average_parameters([param])
        averager.step += 1 + 4 * comm.rank
        before = averager.step
        with pytest.raises(MismatchError) as error:
            averager.average_parameters([param])
        assert averager.step == before
        return str(error.value)

    for message in run_threads(2, body):
        assert "round after step 5" in message


def test_period_and_warmup_can_be_set() -> None:
    """P3."""
    averager = lt.PeriodicModelAverager(4, process_group=solo())
    averager.period, averager.warmup_steps = 2, 1
    assert (averager.period, averager.warmup_steps) == (2, 1)
    held = [averager.average_parameters([parameter(1.0)]) for _ in range(5)]
    assert held == [False, True, False, True, False]
