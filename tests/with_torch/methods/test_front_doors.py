"""A front door on torch's parameters gives the bits of that on numpy's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import Arena, Communicator, optim, run_threads
from localsgd.arrays import balanced, strided
from torch_ranks import run_ranks

SHAPES = {"a": (3, 2), "b": (5,)}
PLAN = [["a"], ["b"]]
NUMBERS: dict[str, dict[str, Any]] = {
    "LocalSGD": {"period": 4},
    "DiLoCo": {"period": 4},
    "SlowMo": {"period": 4},
    "StreamingDiLoCo": {"period": 4, "fragments": PLAN, "delay": 2},
    "OverlappedSGD": {"period": 4, "delay": 2},
    "EASGD": {"period": 4},
}


def moves(rank: int) -> list[dict[str, np.ndarray]]:
    """What each step moves the parameters by, beside an optimizer that has no gradient."""
    random = np.random.default_rng(rank)
    return [
        {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(11)
    ]


def on_numpy(comm: Communicator, name: str, **options: Any) -> list[bytes]:
    arena = Arena({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, comm)
    training = getattr(localsgd, name)(optim.SGD(arena, lr=0.1), **NUMBERS[name], **options)
    training.averager.begin(arena)
    found = []
    for move in moves(comm.rank):
        for key, view in arena.items():
            view += move[key]
        training.step()
        found.append(arena.flat.tobytes())
    training.flush()
    return [*found, arena.flat.tobytes()]


def on_torch(group: Any, rank: int, name: str, **options: Any) -> list[bytes]:
    params = {key: Parameter(torch.ones(shape)) for key, shape in SHAPES.items()}
    inner = torch.optim.SGD(params.items(), lr=0.1)
    training = getattr(ours, name)(inner, **NUMBERS[name], process_group=group, **options)

    def values() -> bytes:
        return b"".join(param.detach().numpy().tobytes() for param in params.values())

    training.averager.begin(training.param_groups)
    found = []
    for move in moves(rank):
        for key, param in params.items():
            param.grad = torch.zeros_like(param)
            param.detach().add_(torch.from_numpy(move[key]))
        training.step()
        found.append(values())
    training.flush()
    return [*found, values()]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (2, "1+1"), (3, "2+1"), (4, "4")])
def test_torch_gives_the_bits_of_numpy(name: str, size: int, hosts: str) -> None:
    def work(comm: Communicator) -> None:
        expected = on_numpy(comm, name, synchronous_steps=2)
        assert on_torch(comm, comm.rank, name, synchronous_steps=2) == expected

    run_threads(size, work, hosts=hosts)


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "EASGD"])
def test_compressed_rounds_give_the_bits_of_numpy(name: str) -> None:
    def work(comm: Communicator) -> None:
        for codec in (ours.codecs.TopK(2, 4), ours.codecs.E3M0(8)):
            expected = on_numpy(comm, name, compress=codec)
            assert on_torch(comm, comm.rank, name, compress=codec) == expected

    run_threads(3, work, hosts="2+1")


def test_on_groups_of_torch_too() -> None:
    def body(rank: int) -> list[list[bytes]]:
        return [on_torch(None, rank, name) for name in NUMBERS]

    def reference(comm: Communicator) -> list[list[bytes]]:
        return [on_numpy(comm, name) for name in NUMBERS]

    assert run_ranks(3, body) == run_threads(3, reference)


def test_a_front_door_is_saved_and_goes_on() -> None:
    """In the middle of a period, with a fragment on its way."""
    made: dict[str, Callable[[Any, Any], Any]] = {
        "DiLoCo": lambda inner, comm: ours.DiLoCo(inner, 4, process_group=comm),
        "StreamingDiLoCo": lambda inner, comm: ours.StreamingDiLoCo(
            inner, 4, 2, delay=3, process_group=comm
        ),
    }

    def work(comm: Communicator) -> None:
        for make in made.values():
            params = [[Parameter(torch.ones(5)), Parameter(torch.ones(3))] for _ in range(2)]
            first, second = (make(torch.optim.SGD(mine, lr=0.1), comm) for mine in params)

            def step(training: Any, mine: Any, number: int) -> None:
                for param in mine:
                    param.grad = torch.sin(param.detach() + number + comm.rank)
                training.step()

            for number in range(5):
                step(first, params[0], number)
            state = first.state_dict()
            for one, other in zip(*params, strict=True):
                other.detach().copy_(one.detach())
            second.load_state_dict(state)
            for number in range(5, 12):
                step(first, params[0], number)
                step(second, params[1], number)
                for one, other in zip(*params, strict=True):
                    assert torch.equal(one, other)

    run_threads(2, work)


def test_fragments_by_layers_of_a_module() -> None:
    """A plan of the names that a module gives, with a part apart, gives the bits of numpy."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))

    def work(comm: Communicator) -> None:
        module = deepcopy(model)
        named = dict(module.named_parameters())
        plan = strided(named, 2, apart=["0.weight", "0.bias"])
        assert plan == [
            [f"{i}.{part}" for i in layers for part in ("weight", "bias")]
            for layers in ((1, 3), (2,), (0,))
        ]
        assert balanced(named, 2) == balanced({n: p.detach().numpy() for n, p in named.items()}, 2)
        arena = Arena({name: p.detach().numpy() for name, p in named.items()}, comm)
        mine = localsgd.StreamingDiLoCo(optim.SGD(arena, lr=0.1), 6, plan, delay=2)
        inner = torch.optim.SGD(module.named_parameters(), lr=0.1)
        its = ours.StreamingDiLoCo(inner, 6, plan, delay=2, process_group=comm)
        mine.averager.begin(arena)
        its.averager.begin(its.param_groups)
        for step in range(14):
            for name, param in named.items():
                move = np.sin(np.arange(param.numel()) + step + comm.rank).astype(np.float32)
                arena[name][...] += move.reshape(arena[name].shape)
                param.grad = torch.zeros_like(param)
                param.detach().add_(torch.from_numpy(move.reshape(arena[name].shape)))
            mine.step()
            its.step()
            for name, param in named.items():
                assert param.detach().numpy().tobytes() == arena[name].tobytes()

    run_threads(2, work, hosts="1+1")
