"""SCAFFOLD on torch's SGD: numpy's bits, the optimum of all, and resuming."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import Arena, Communicator, optim, run_threads
from torch_ranks import run_ranks

PERIOD = 4
SHAPES: dict[str, tuple[int, ...]] = {"a": (3, 2), "b": (5,), "c": ()}
DTYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}


def rate(step: int) -> float:
    """Powers of two, by which a product is exact: torch's kernels round it with the difference."""
    return 0.25 if step % 3 else 0.125


def slope(name: str, rank: int, at: Any) -> Any:
    """Of a quadratic that is another one on every worker."""
    place = np.arange(at.size, dtype=np.float64).reshape(at.shape)
    pull = (0.5 + 0.25 * rank) * (at.astype(np.float64) - np.cos(place + rank + len(name)))
    return pull.astype(at.dtype)


def on_numpy(comm: Communicator, dtype: Any = np.float32, decay: float = 0.0) -> list[bytes]:
    """All parameters after each of eleven steps and a flush."""
    arena = Arena({name: np.ones(shape, dtype) for name, shape in SHAPES.items()}, comm)
    training = localsgd.SCAFFOLD(optim.SGD(arena, lr=1.0, weight_decay=decay), PERIOD)
    found = []
    for step in range(11):
        training.param_groups[0]["lr"] = rate(step)
        for name, view in arena.items():
            arena.grad[name] = slope(name, comm.rank, view)
        training.step()
        found.append(arena.flat.tobytes())
    training.flush()
    return [*found, arena.flat.tobytes()]


def bits(tensors: Any) -> bytes:
    return b"".join(array_of(tensor).tobytes() for tensor in tensors)


def array_of(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def as_tensor(array: Any, like: Tensor) -> Tensor:
    return torch.tensor(array.astype(np.float64)).to(like.dtype)


def step_of(training: Any, params: dict[str, Parameter], rank: int, step: int) -> None:
    training.param_groups[0]["lr"] = rate(step)
    for name, param in params.items():
        param.grad = as_tensor(slope(name, rank, array_of(param)), param)
    training.step()


def on_torch(
    group: Any, rank: int, dtype: torch.dtype = torch.float32, decay: float = 0.0, way: str = ""
) -> list[bytes]:
    params = {name: Parameter(torch.ones(shape, dtype=dtype)) for name, shape in SHAPES.items()}
    ways = {way: True} if way else {}
    inner = torch.optim.SGD(params.values(), lr=1.0, weight_decay=decay, **ways)
    training = ours.SCAFFOLD(inner, PERIOD, process_group=group)
    found = []
    for step in range(11):
        step_of(training, params, rank, step)
        found.append(bits(params.values()))
    training.flush()
    return [*found, bits(params.values())]


@pytest.mark.parametrize("way", ["", "foreach", "fused"])
@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (2, "1+1"), (3, "2+1"), (4, "4")])
def test_torch_gives_the_bits_of_numpy(way: str, size: int, hosts: str) -> None:
    def work(comm: Communicator) -> None:
        assert on_torch(comm, comm.rank, way=way) == on_numpy(comm)
        assert on_torch(comm, comm.rank, decay=0.25, way=way) == on_numpy(comm, decay=0.25)

    run_threads(size, work, hosts=hosts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_every_dtype(dtype: torch.dtype) -> None:
    def work(comm: Communicator) -> None:
        assert on_torch(comm, comm.rank, dtype) == on_numpy(comm, DTYPES[dtype])

    run_threads(3, work)


def test_on_groups_of_torch_too() -> None:
    assert run_ranks(3, lambda rank: on_torch(None, rank)) == run_threads(3, on_numpy)


CURVATURES = [torch.tensor([0.5 + r, 2.0 - 0.25 * r, 1.0], dtype=torch.float64) for r in range(3)]
TARGETS = [torch.tensor([r, -r, r**2 / 2.0], dtype=torch.float64) for r in range(3)]


@pytest.mark.parametrize(
    "period", [1, 3, *(pytest.param(n, marks=pytest.mark.long) for n in (8, 20))]
)
def test_different_data_end_at_the_optimum_of_all(period: int) -> None:
    """Closed form 6: (Σ A)^-1 Σ A b for any period, by autograd and with its own A on each worker.

    To rounding, after steps by a rate of 0.1 and curvatures of about 1, and 160 rounds or more.
    """
    products = [a * b for a, b in zip(CURVATURES, TARGETS, strict=True)]
    optimum = torch.stack(products).sum(0) / torch.stack(CURVATURES).sum(0)

    def work(comm: Communicator) -> list[float]:
        far = []
        for kind in (ours.SCAFFOLD, ours.LocalSGD):
            x = Parameter(torch.zeros(3, dtype=torch.float64))
            training = kind(torch.optim.SGD([x], lr=0.1), period, process_group=comm)
            for _ in range(max(400, 160 * period)):
                training.zero_grad()
                loss = (CURVATURES[comm.rank] * (x - TARGETS[comm.rank]) ** 2).sum() / 2
                loss.backward()  # type: ignore[no-untyped-call]
                training.step()
            training.flush()
            far.append((x.detach() - optimum).abs().max().item())
        return far

    for controlled, local in run_threads(3, work):
        assert controlled < 1e-12
        assert period == 1 or local > 0.001


def saved_by_torch(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def made(comm: Any) -> tuple[dict[str, Parameter], Any]:
    params = {name: Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    inner = torch.optim.SGD(params.values(), lr=1.0)
    return params, ours.SCAFFOLD(inner, PERIOD, process_group=comm)


@pytest.mark.parametrize("stop", range(2 * PERIOD + 1))
def test_resuming_at_any_step_is_never_having_stopped(stop: int) -> None:
    """By torch.save, and by state dicts that the training goes on from without a copy."""

    def work(comm: Communicator) -> None:
        params, training = made(comm)
        for step in range(stop):
            step_of(training, params, comm.rank, step)
        state = training.state_dict()
        later = [made(comm) for _ in range(2)]
        for (others, other), loaded in zip(later, (saved_by_torch(state), state), strict=True):
            for name, param in params.items():
                others[name].detach().copy_(param.detach())
            other.load_state_dict(loaded)
        for step in range(stop, 3 * PERIOD + 1):
            for mine, each in ((params, training), *later):
                step_of(each, mine, comm.rank, step)
        for others, _ in later:
            assert bits(others.values()) == bits(params.values())

    run_threads(3, work, hosts="2+1")


def test_distributed_checkpoints_keep_the_control_variates() -> None:
    """Of torch.distributed.checkpoint, which keeps state and groups of an optimizer alone."""

    def body(rank: int) -> list[bool]:
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        def linear() -> tuple[nn.Linear, Any]:
            model = nn.Linear(3, 2)
            with torch.no_grad():
                for param in model.parameters():
                    param.fill_(0.5)
            return model, ours.SCAFFOLD(torch.optim.SGD(model.parameters(), lr=0.1), PERIOD)

        def train(model: nn.Linear, training: Any, steps: range) -> None:
            for step in steps:
                training.zero_grad()
                (model(torch.ones(2, 3)) - rank - step).pow(2).sum().backward()
                training.step()

        found = []
        for stop in range(1, 2 * PERIOD):
            model, training = linear()
            train(model, training, range(stop))
            later_model, later = linear()
            saved = get_optimizer_state_dict(model, training)
            later_model.load_state_dict(model.state_dict())
            set_optimizer_state_dict(later_model, later, saved)
            for each, stepped in ((model, training), (later_model, later)):
                train(each, stepped, range(stop, 3 * PERIOD))
            found.append(bits(model.parameters()) == bits(later_model.parameters()))
        return found

    assert run_ranks(2, body) == [[True] * (2 * PERIOD - 1)] * 2
