"""The hook's state and what it finds, refuses and saves; buckets are made by hand, without DDP."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo


def test_hosts_are_groups_of_their_own() -> None:
    def body(comm: Any) -> Any:
        state = ours.PostLocalSGDState(comm, None, 1)
        return [hooked_once(state, 1.0 + comm.rank) for _ in range(2)]

    assert run_threads(3, body, hosts="2+1") == [[2.0, 1.5], [2.0, 1.5], [2.0, 3.0]]


class Bucket:
    """What a hook asks of DDP's buckets: this one is all there is of a model."""

    def __init__(self, *values: float) -> None:
        self.values = torch.tensor(values)

    def buffer(self) -> torch.Tensor:
        return self.values

    def is_last(self) -> bool:
        return True


def hooked_once(state: Any, *values: float) -> float:
    bucket = Bucket(*values)
    reduced = ours.post_localSGD_hook(state, bucket).wait()
    assert reduced is bucket.values
    return float(reduced[0])


def test_another_start_than_the_saved_one_is_reported() -> None:
    state = ours.PostLocalSGDState(solo(), None, 4)
    saved = {**state.state_dict(), "iter": 3}
    with pytest.warns(UserWarning, match="start_localSGD_iter 4.* goes on with 5") as caught:
        ours.PostLocalSGDState(solo(), None, 5).load_state_dict(saved)
    assert caught[0].filename == __file__
    for wrong, error in (({}, ValueError), ({**saved, "iter": "three"}, TypeError)):
        with pytest.raises(error):
            state.load_state_dict(wrong)
        assert state.iter == 0


def test_copies_of_a_state_count_for_themselves_and_pickles_find_their_workers() -> None:
    """torch's state can be neither copied nor pickled with a group."""
    state = ours.PostLocalSGDState(solo(), None, 2)
    state.iter = 1
    copied = copy.deepcopy(state)
    assert hooked_once(copied, 5.0) == 5.0
    assert (state.iter, copied.iter) == (1, 2)
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(state)

    def body(comm: Any) -> Any:
        state = ours.PostLocalSGDState(None, None, 2, post_local_gradient_allreduce=False)
        state.iter = 1
        loaded = pickle.loads(pickle.dumps(state))
        values = [hooked_once(loaded, float(comm.rank)) for _ in range(2)]
        return values, loaded.iter

    assert run_threads(2, body) == [([0.5, 0.0], 2), ([0.5, 1.0], 2)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((-3,), ValueError), ((2.5,), TypeError), ((2, 1), TypeError), ((True,), TypeError)],
)
def test_a_state_checks_its_numbers(arguments: Any, error: type[Exception]) -> None:
    """Better than torch's, which checks nothing."""
    with pytest.raises(error):
        ours.PostLocalSGDState(solo(), None, *arguments)


def test_a_group_without_this_rank_is_refused_when_the_state_is_made() -> None:
    """B5 and K5: torch fails in mid-training."""

    def body(comm: Any) -> str:
        pair = comm.split(0 if comm.rank < 2 else None)
        kind = ValueError if comm.rank == 2 else MismatchError
        with pytest.raises(kind, match="subgroup must have this rank as a member") as error:
            ours.PostLocalSGDState(comm, pair, 1)
        ours.PostLocalSGDState(comm, pair, 1, post_local_gradient_allreduce=False)
        return type(error.value).__name__

    assert run_threads(3, body) == ["MismatchError", "MismatchError", "ValueError"]


@pytest.mark.parametrize("given", [(1, True), (2, False)])
def test_states_that_differ_are_told_on_every_rank(given: tuple[int, bool]) -> None:
    def body(comm: Any) -> None:
        start, averaging = (2, True) if comm.rank else given
        with pytest.raises(MismatchError, match=r"_.* on rank 0; .* on rank 1"):
            ours.PostLocalSGDState(comm, None, start, averaging)

    run_threads(2, body)


@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_an_error_of_the_reduction_is_the_futures(hosts: str) -> None:
    """Buckets of different lengths, which DDP would not make."""

    def body(comm: Any) -> None:
        state = ours.PostLocalSGDState(comm, None, 5)
        future = ours.post_localSGD_hook(state, Bucket(*[1.0] * (2 + comm.rank)))
        with pytest.raises(MismatchError, match="2 float32 .* for gradients"):
            future.wait()

    run_threads(2, body, hosts=hosts)
