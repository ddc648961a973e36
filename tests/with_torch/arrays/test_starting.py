"""How workers come to start equal: all that a model saves is rank 0's after ``adopt``.

Tried of the kind: frozen parameters (in channels_last, of more than one message, tied), buffers of
booleans, integers, bytes, complex numbers, halves and float8, of no elements, expanded, in another
memory format, not saved with the model, extra state that is a tensor; models without ``adopt``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import MismatchError, run_threads

RARELY = 1_000_000


class Holding(nn.Module):
    """Everything that a module can hold, with values of the rank's own."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 2)
        self.frozen = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.frozen.requires_grad_(False)
        self.large = Parameter(torch.empty(5_000_000), requires_grad=False)
        self.tied = self.large
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("bits", torch.zeros(5, dtype=torch.uint8))
        self.register_buffer("angles", torch.zeros(2, 2, dtype=torch.complex64).t().conj())
        self.register_buffer("halves", torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("eighth", torch.zeros(3, dtype=torch.float8_e4m3fn))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("wide", torch.zeros(2, 1).expand(2, 4))
        self.register_buffer("cache", torch.zeros(4), persistent=False)
        self.extra = torch.zeros(2, dtype=torch.int16)
        with torch.no_grad():
            for param in self.parameters():
                param.fill_(1.0 + rank)
            self.flags[:] = torch.tensor([True, False, rank == 0])
            self.count.fill_(3 - rank)
            self.bits.fill_(200 + rank)
            self.angles.fill_(complex(rank + 1, -2.0))
            self.halves.fill_(rank + 0.5)
            self.eighth.fill_(rank + 0.5)
            self.wide[:, :1].fill_(rank + 7.0)
            self.cache.fill_(rank + 9.0)
            self.extra.fill_(rank + 11)

    def get_extra_state(self) -> Tensor:
        return self.extra.clone()

    def set_extra_state(self, state: Tensor) -> None:
        self.extra.copy_(state)

    def held(self) -> dict[str, Tensor]:
        """All tensors but those in the extra state, each the same object at every call."""
        buffers = dict(self.named_buffers())
        return {**dict(self.named_parameters()), **buffers, "extra": self.extra}


@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (2, "2"), (3, "2+1"), (4, "4")])
def test_all_that_a_model_holds_is_rank_0s_in_place(size: int, hosts: str) -> None:
    expected = {name: tensor.detach().clone() for name, tensor in Holding(0).held().items()}

    def body(comm: Any) -> Any:
        model = Holding(comm.rank)
        before = {name: id(tensor) for name, tensor in model.held().items()}
        places = {
            name: tensor.data_ptr()
            for name, tensor in model.held().items()
            if not name.startswith("trained")
        }
        ours.adopt(model, comm)
        found = model.held()
        assert {name: id(tensor) for name, tensor in found.items()} == before
        assert {name: found[name].data_ptr() for name in places} == places
        assert model.frozen.weight.is_contiguous(memory_format=torch.channels_last)
        return [name for name in expected if not torch.equal(found[name], expected[name])]

    assert run_threads(size, body, hosts=hosts) == [[]] * size


def test_outputs_are_the_same_on_all_ranks_after_a_round() -> None:
    """A frozen layer and a mask of booleans stand between what is trained and the output."""

    class Masked(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.trained, self.frozen = nn.Linear(3, 3), nn.Linear(3, 1)
            self.register_buffer("mask", torch.tensor([True, rank == 0, rank == 1]))
            generator = torch.Generator().manual_seed(rank)
            with torch.no_grad():
                for param in self.parameters():
                    param.copy_(torch.randn(param.shape, generator=generator))
            self.frozen.requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.frozen(self.trained(inputs) * self.mask)
            return out

    def body(comm: Any) -> float:
        model = Masked(comm.rank)
        adopted = ours.adopt(model, comm)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            ours.PeriodicModelAverager(RARELY, 0, comm),
            buffers=adopted.buffers,
        )
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + comm.rank)).sum().backward()
            optimizer.step()
        optimizer.flush()
        return model(torch.ones(1, 3)).item()

    outputs = run_threads(3, body, hosts="2+1")
    assert outputs == [outputs[0]] * 3


def test_each_may_keep_what_it_holds() -> None:
    def body(comm: Any) -> bool:
        model, same = Holding(comm.rank), Holding(comm.rank)
        ours.adopt(model, comm, start="keep")
        return all(
            torch.equal(found, expected)
            for found, expected in zip(model.held().values(), same.held().values(), strict=True)
        )

    assert run_threads(2, body) == [True, True]


def test_a_model_that_holds_something_else_is_named_and_nothing_changes() -> None:
    def body(comm: Any) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.full((2 + comm.rank,), comm.rank == 0))
        model.bias.requires_grad_(False)
        with torch.no_grad():
            model.bias.fill_(comm.rank)
        words = r"'mask' torch.bool\[2\] on rank 0; .*\[3\] on rank 1"
        with pytest.raises(MismatchError, match=words):
            ours.adopt(model, comm)
        assert model.bias[0].item() == comm.rank

    run_threads(2, body)


def sparse(model: nn.Module) -> None:
    model.register_buffer("odd", torch.eye(2).to_sparse())


def on_meta(model: nn.Module) -> None:
    model.register_buffer("odd", torch.zeros(2, device="meta"))


@pytest.mark.parametrize("change", [sparse, on_meta])
def test_a_buffer_without_memory_of_its_own_is_refused_by_name(change: Any) -> None:
    def body(comm: Any) -> None:
        model = nn.Linear(2, 2)
        change(model)
        with pytest.raises(ValueError, match="buffer 'odd' must be dense and in memory"):
            ours.adopt(model, comm)

    run_threads(2, body)


def train(comm: Any, model: nn.Module, *, adopt: bool = False) -> None:
    if adopt:
        ours.adopt(model, comm)
    optimizer = ours.PostLocalSGDOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), ours.PeriodicModelAverager(2, 2, comm)
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.full((1, 2), 1.0 + comm.rank)).sum().backward()
        optimizer.step()


def linear(trained: float, frozen: float) -> nn.Module:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(trained)
        model.bias.fill_(frozen)
    model.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(
    ("trained", "frozen", "named"), [(1.0, 0.0, "'0.0'"), (0.0, 1.0, "'0.1'"), (0.0, 0.0, "")]
)
def test_without_adopt_what_differs_at_the_start_is_said_once(
    size: int, trained: float, frozen: float, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last rank differs in what is trained, in what is frozen, or in nothing."""

    def body(comm: Any) -> None:
        last = float(comm.rank == size - 1)
        train(comm, linear(trained * last, frozen * last))

    run_threads(size, body)
    told = [line for line in capsys.readouterr().err.splitlines() if "localsgd" in line]
    assert len(told) == (1 if named else 0)
    if named:
        assert f"start from different values: {named} with digest" in told[0]
        assert f"on rank {size - 1}" in told[0] and "adopt(model)" in told[0]


def test_nothing_is_said_of_a_model_that_was_adopted(capsys: pytest.CaptureFixture[str]) -> None:
    run_threads(2, lambda comm: train(comm, linear(comm.rank, comm.rank), adopt=True))
    assert capsys.readouterr().err == ""
