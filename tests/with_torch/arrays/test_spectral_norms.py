"""A spectral norm is one after a round: its vectors are those of the averaged weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import localsgd.torch as ours
from localsgd import run_threads

with warnings.catch_warnings():
    # torch's own package uses what torch deprecates.
    warnings.simplefilter("ignore")
    from torch.nn.utils import spectral_norm as old_spectral_norm

RARELY = 1_000_000


def optimizer_of(comm: Any, model: nn.Module, *, lr: float = 0.05, rules: Any = None) -> Any:
    adopted = ours.adopt(model, comm, rules=rules)
    return ours.PostLocalSGDOptimizer(
        torch.optim.SGD(model.parameters(), lr=lr),
        ours.PeriodicModelAverager(RARELY, 0, comm),
        buffers=adopted.buffers,
    )


def held(model: nn.Module) -> dict[str, list[Any]]:
    return {name: buffer.tolist() for name, buffer in model.named_buffers()}


def linear(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return norm(nn.Linear(6, 5))


def convolution(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return norm(nn.Conv2d(2, 3, 2))


def transposed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return norm(nn.ConvTranspose2d(2, 3, 2))


def doubled(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Behind weight normalisation, so that its weight is made of two parameters."""
    return norm(parametrizations.weight_norm(nn.Linear(6, 5)))


def value_of(layer: nn.Module, weight: Tensor) -> float:
    """The largest singular value of a layer's weight."""
    first = weight.movedim(1, 0) if isinstance(layer, nn.ConvTranspose2d) else weight
    return float(torch.linalg.matrix_norm(first.flatten(1), 2))


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        (old_spectral_norm, linear),
        (old_spectral_norm, convolution),
        (old_spectral_norm, transposed),
        (parametrizations.spectral_norm, linear),
        (parametrizations.spectral_norm, convolution),
        (parametrizations.spectral_norm, transposed),
        (parametrizations.spectral_norm, doubled),
    ],
)
@pytest.mark.parametrize(("size", "hosts"), [(2, "2"), (3, "2+1"), (4, "4")])
def test_a_spectral_norm_is_one_after_a_round(norm: Any, layer: Any, size: int, hosts: str) -> None:
    """Within 2 % at once: the vectors are those of the averaged weight, the same on every rank."""

    def body(comm: Any) -> Any:
        model = layer(norm)
        optimizer = optimizer_of(comm, model)
        generator = torch.Generator().manual_seed(comm.rank)
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))
        inputs = torch.randn(4, *[6] if isinstance(model, nn.Linear) else [2, 4, 4])
        for _ in range(5):
            model(inputs)
        optimizer.flush()
        model.eval()
        model(inputs)
        weight = model.weight.detach()
        return value_of(model, weight), weight.tolist(), held(model)

    found = run_threads(size, body, hosts=hosts)
    assert found == [found[0]] * size
    assert found[0][0] == pytest.approx(1.0, rel=0.02)
    for vector in found[0][2].values():
        assert torch.tensor(vector).norm().item() == pytest.approx(1.0, rel=1e-5)


def test_training_under_a_spectral_norm_stays_within_its_bound() -> None:
    """200 steps at rate 0.05 with rounds after every eighth, each worker on data of its own."""

    def body(comm: Any) -> Any:
        model = nn.Sequential(old_spectral_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 1))
        adopted = ours.adopt(model, comm)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05),
            ours.PeriodicModelAverager(8, 0, comm),
            buffers=adopted.buffers,
        )
        generator = torch.Generator().manual_seed(comm.rank)
        largest = []
        for step in range(200):
            inputs = torch.randn(16, 8, generator=generator) * (1 + comm.rank)
            optimizer.zero_grad()
            (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean().backward()
            optimizer.step()
            if step % 8 == 0:
                model.eval()
                model(inputs)
                largest.append(value_of(model[0], model[0].weight.detach()))
                model.train()
        return largest

    for largest in run_threads(3, body):
        assert largest == [pytest.approx(1.0, rel=0.02)] * 25
