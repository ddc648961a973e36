"""C20, C36 and C37: what is saved, copied and loaded, by torch's tools as well."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import run_threads, solo
from torch_models import linear, train, wrapped
from torch_ranks import TorchOptimizer, run_ranks


def test_a_state_dict_is_the_inner_one_with_the_step() -> None:
    """C20: keys, round trip, and to and from a plain optimizer."""
    model, optimizer = wrapped()
    train(model, optimizer, 3)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups", "step", "averager"}
    assert saved["step"] == 3
    other_model, other = wrapped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(saved)
    assert other.averager.step == 3
    assert saved["step"] == 3
    plain = torch.optim.SGD(linear().parameters(), lr=0.5)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 0.1
    message = (
        "Loaded state dict does not contain a step counter for an averager. "
        "Setting step counter to 0."
    )
    with pytest.warns(UserWarning, match=message) as caught:
        other.load_state_dict(torch.optim.SGD(other_model.parameters(), lr=0.5).state_dict())
    assert other.averager.step == 0
    assert caught[0].filename == __file__
    assert other.param_groups[0]["lr"] == 0.5


def test_a_plain_optimizer_does_not_keep_the_step() -> None:
    """C20: what a plain optimizer saves later was not saved at that step."""
    model, optimizer = wrapped()
    train(model, optimizer, 3)
    saved = optimizer.state_dict()
    assert saved["param_groups"] == optimizer.optim.state_dict()["param_groups"]
    plain = torch.optim.SGD(model.parameters(), lr=0.5)
    plain.load_state_dict(saved)
    with pytest.warns(UserWarning, match="does not contain a step counter"):
        optimizer.load_state_dict(plain.state_dict())
    assert optimizer.averager.step == 0


def test_samples_from_before_a_load_without_an_averagers_state_weigh_no_more() -> None:
    """The 98 samples that rank 1 saw more are gone: the mean of 0 and -2 is plain."""

    def body(comm: Any) -> float:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(4, process_group=comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
        averager.record_samples(1 + 98 * comm.rank)
        optimizer.load_state_dict({**optimizer.optim.state_dict(), "step": 0})
        averager.record_samples(1)
        param.grad = torch.full((1,), 2.0 * comm.rank)
        optimizer.step()
        return param.item()

    assert run_threads(2, body) == [-1.0] * 2


def test_torchs_checkpoints_load_into_ours_and_ours_into_torchs() -> None:
    """C20, with torch's own wrapper."""

    def body(rank: int) -> Any:
        def made(wrapper: Any, averager: Any) -> tuple[nn.Linear, Any]:
            model = linear()
            inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            return model, wrapper(inner, averager(4))

        pairs = [
            made(ours.PostLocalSGDOptimizer, ours.PeriodicModelAverager),
            made(TorchOptimizer, torch_averagers.PeriodicModelAverager),
        ]
        for model, optimizer in pairs:
            train(model, optimizer, 3)
        (model, mine), (other, torchs) = pairs
        mine_saved, torchs_saved = mine.state_dict(), torchs.state_dict()
        mine.load_state_dict(torchs_saved)
        torchs.load_state_dict(mine_saved)
        for model, optimizer in pairs:
            train(model, optimizer, 2)
        assert set(torchs_saved) < set(mine_saved)
        same = all(
            torch.allclose(one, two)
            for one, two in zip(model.parameters(), other.parameters(), strict=True)
        )
        return mine.averager.step, torchs.averager.step, same

    assert run_ranks(2, body) == [(5, 5, True)] * 2


def test_a_failing_load_leaves_the_counter() -> None:
    """C20."""
    model, optimizer = wrapped()
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict({**saved, "step": 9, "param_groups": []})
    with pytest.raises(TypeError, match="step must be an integer, got 'nine'"):
        optimizer.load_state_dict({**saved, "step": "nine"})
    changed = {**saved, "param_groups": [{**saved["param_groups"][0], "lr": 7.0}]}
    with pytest.raises(ValueError, match="an averager's state dict must have"):
        optimizer.load_state_dict({**changed, "averager": {}})
    assert optimizer.averager.step == 2
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_copies_count_for_themselves() -> None:
    """C37 and B8."""
    model, optimizer = wrapped()
    train(model, optimizer, 3)
    copied = copy.deepcopy(optimizer)
    train(model, optimizer)
    assert (optimizer.averager.step, copied.averager.step) == (4, 3)
    weight = copied.param_groups[0]["params"][0]
    assert weight is not model.weight
    weight.grad = torch.ones_like(weight)
    copied.step()
    assert copied.averager.step == 4


def test_pickles_reconnect_to_all_workers() -> None:
    """C37: the averager and the wrapper, with their counters; used once loaded."""

    def body(rank: int) -> Any:
        param = Parameter(torch.full((1,), float(rank)))
        found = []
        for averager in (
            ours.PeriodicModelAverager(2),
            ours.HierarchicalModelAverager({2: 2, 4: 4}, 1),
        ):
            averager.step = 3
            optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
            loaded = pickle.loads(pickle.dumps(optimizer))
            assert loaded.averager.step == 3
            loaded.step()
            loaded.step()
            found.append((loaded.averager.step, loaded.param_groups[0]["params"][0].item()))
        return found

    assert run_ranks(4, body) == [[(5, 1.5), (5, 1.5)]] * 4


def test_an_averager_of_some_workers_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(ours.PeriodicModelAverager(2, 0, solo()))


def test_torch_save_keeps_a_wrapper_state_loadable_without_pickle() -> None:
    model, optimizer = wrapped()
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert optimizer.averager.step == 2


def test_another_period_than_the_saved_one_is_reported() -> None:
    """C36."""
    _, optimizer = wrapped()
    _, other = wrapped(period=8)
    with pytest.warns(UserWarning, match="post_local.4.*goes on with post_local.8") as caught:
        other.load_state_dict(optimizer.state_dict())
    assert caught[0].filename == __file__


def test_distributed_checkpoints_keep_state_and_counter() -> None:
    """B7: torch's wrapper raises, or loses the counter."""

    def body(rank: int) -> Any:
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        def made() -> tuple[nn.Linear, ours.PostLocalSGDOptimizer]:
            model = linear()
            inner = torch.optim.AdamW(model.parameters(), lr=0.1)
            return model, ours.PostLocalSGDOptimizer(inner, ours.PeriodicModelAverager(4))

        fresh_model, fresh = made()
        get_optimizer_state_dict(fresh_model, fresh)
        assert fresh.averager.step == 0
        model, optimizer = made()
        train(model, optimizer, 3)
        saved = get_optimizer_state_dict(model, optimizer)
        set_optimizer_state_dict(fresh_model, fresh, saved)
        moments = optimizer.state[model.weight]["exp_avg"]
        same = torch.equal(fresh.state[fresh_model.weight]["exp_avg"], moments)
        return fresh.averager.step, same, fresh.param_groups[0]["lr"]

    assert run_ranks(2, body) == [(3, True, 0.1)] * 2
