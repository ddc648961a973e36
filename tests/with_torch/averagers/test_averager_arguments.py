"""C4 and C5: what the averagers refuse, warn of and let be set, in torch's order."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.distributed.algorithms.model_averaging import hierarchical_model_averager as torch_levels

import localsgd.torch as lt
from localsgd import solo
from torch_ranks import run_ranks


@pytest.mark.parametrize("kind", [lt.PeriodicModelAverager, torch_averagers.PeriodicModelAverager])
def test_periodic_arguments_are_checked_in_torchs_order(kind: Any) -> None:
    """C4."""

    def body(rank: int) -> list[Any]:
        errors = []
        for arguments in ((0, 0), (-3, 0), (0, -1)):
            with pytest.raises(ValueError, match=r".") as error:
                kind(*arguments)
            errors.append("warmup" in str(error.value))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(1)
        return [errors, [(warning.category, warning.filename) for warning in caught]]

    assert run_ranks(1, body) == [[[False, False, True], [(UserWarning, __file__)]]]


HIERARCHIES: list[tuple[Any, int]] = [
    ({}, 0),
    (None, 0),
    ({0: 4}, 0),
    ({-2: 4}, 0),
    ({2: 2}, 0),
    ({2: 3, 4: 4}, 0),
    ({2: 8, 4: 4}, 0),
    ({2: 0, 4: 4}, 0),
    ({2: 2, 4: 4}, -1),
]


@pytest.mark.parametrize(("levels", "warmup"), HIERARCHIES)
def test_hierarchies_refuse_what_torchs_refuses(levels: Any, warmup: int) -> None:
    """C5: rules H1, H2, H3 and H5."""

    def body(rank: int) -> list[str]:
        found = []
        for kind in (lt.HierarchicalModelAverager, torch_levels.HierarchicalModelAverager):
            with pytest.raises(ValueError, match=r".") as error:
                kind(levels, warmup)
            found.append(type(error.value).__name__)
        return found

    assert run_ranks(4, body) == [["ValueError", "ValueError"]] * 4


@pytest.mark.parametrize("levels", [{1: 2}, {2: 1, 1: 2}])
def test_a_hierarchy_of_period_one_warns_where_it_was_made(levels: dict[int, int]) -> None:
    """C5: the warning of H2."""

    def body(rank: int) -> list[Any]:
        found = []
        for kind in (lt.HierarchicalModelAverager, torch_levels.HierarchicalModelAverager):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                kind(levels)
            users = [warning for warning in caught if warning.category is UserWarning]
            found.append(len(users))
            if kind is lt.HierarchicalModelAverager:
                assert users[0].filename == __file__
        return found

    assert run_ranks(2, body) == [[1, 1]] * 2


@pytest.mark.parametrize("levels", [{2: 2, 0: 4}, {2: 2, -4: 4}, [(2, 2), (4, 4)], {2.5: 4}])
def test_hierarchies_check_every_level_at_once(levels: Any) -> None:
    """Better than H1 and H3, which find these at the first step that needs them, or never."""

    def body(rank: int) -> None:
        with pytest.raises((ValueError, TypeError)):
            lt.HierarchicalModelAverager(levels)

    run_ranks(4, body)


def test_the_base_is_abstract_and_takes_subclasses() -> None:
    with pytest.raises(TypeError):
        lt.ModelAverager()  # type: ignore[abstract]

    class Counting(lt.ModelAverager):
        def average_parameters(self, params: Any) -> None:
            self.step += 1

    averager = Counting(solo())
    averager.average_parameters([])
    assert averager.step == 1


def test_a_warning_on_a_rank_is_an_error() -> None:
    def body(rank: int) -> None:
        with pytest.raises(UserWarning, match="of ours"):
            warnings.warn("of ours", stacklevel=1)

    run_ranks(2, body)
