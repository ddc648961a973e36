"""EAMSGD on torch's SGD is that on ours, in every form that a momentum may have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import Arena, Communicator, optim, run_threads
from workers import assert_named_by_all, outcomes

NESTEROV = {"lr": 0.05, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize("foreach", [False, True])
def test_torch_is_as_numpy(foreach: bool) -> None:
    """Through rounds of four workers and a flush, a weight in channels-last, two groups.

    1e-14 is for rounding: torch's compiled steps add in another order.
    """
    shapes = {"a": (2, 3, 2, 2), "b": (5,)}

    def work(comm: Communicator) -> None:
        arena = Arena({name: np.ones(shape) for name, shape in shapes.items()}, comm)
        params = {
            name: Parameter(torch.ones(shape, dtype=torch.float64))
            for name, shape in shapes.items()
        }
        params["a"].data = params["a"].data.to(memory_format=torch.channels_last)
        groups: Any = [{"params": ["a"]}, {"params": ["b"], "momentum": 0.5}]
        mine = optim.SGD([{**g, "params": arena.subset(g["params"])} for g in groups], **NESTEROV)
        for group in groups:
            group["params"] = [(name, params[name]) for name in group["params"]]
        its = torch.optim.SGD(groups, foreach=foreach, **NESTEROV)
        numpys = localsgd.EASGD(mine, 3, look_ahead=True, synchronous_steps=2)
        torchs = ours.EASGD(its, 3, look_ahead=True, synchronous_steps=2, process_group=comm)
        for step in range(13):
            for name, param in params.items():
                grad = np.sin(3.0 * np.arange(arena[name].size) + comm.rank + step)
                arena.grad[name] += grad.reshape(shapes[name])
                param.grad = torch.from_numpy(grad.reshape(shapes[name]))
            numpys.step()
            torchs.step()
            for name, param in params.items():
                found = param.detach().numpy()
                np.testing.assert_allclose(found, arena[name], rtol=0, atol=1e-14)
        numpys.flush()
        torchs.flush()
        for name, param in params.items():
            np.testing.assert_allclose(param.detach().numpy(), arena[name], rtol=0, atol=1e-14)

    run_threads(4, work, hosts="2+2")


def test_other_optimizers_are_refused_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        params = [Parameter(torch.ones(3))]
        plain = torch.optim.SGD(params, lr=0.1)
        nesterov = torch.optim.SGD(params, **NESTEROV)
        inner = plain if comm.rank == 1 else nesterov
        ours.EASGD(inner, 4, look_ahead=True, process_group=comm)

    words = "with nesterov=True in every group, got momentum 0 without it"
    assert_named_by_all(outcomes(2, work), ValueError, words, "look-aheads")
