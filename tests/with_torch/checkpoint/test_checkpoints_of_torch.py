"""What torch's objects hold comes back to the bit, at any step."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import localsgd.torch as ours
from localsgd import CheckpointError, Communicator, every, run_threads, solo

STEPS = 6


class Training:
    """A model with buffers and dropout, an optimizer with a schedule, and generators."""

    def __init__(self, comm: Communicator, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2, dtype=torch.float32)
        )
        ours.adopt(self.model, comm)
        inner = torch.optim.AdamW(self.model.named_parameters(), lr=0.05)
        self.training = ours.DiLoCo(inner, 3, process_group=comm)
        self.rates = torch.optim.lr_scheduler.MultiStepLR(inner, [2, 4], gamma=0.5)
        self.noise = torch.Generator().manual_seed(comm.rank)
        parts = {
            "model": self.model,
            "training": self.training,
            "rates": self.rates,
            "noise": self.noise,
        }
        self.saves = ours.Checkpoints(folder, parts, comm, when=every(1), keep=STEPS)

    def go_on(self, steps: range) -> None:
        for step in steps:
            x = torch.randn(5, 4, generator=self.noise)
            self.model(x).square().sum().backward()
            self.training.step()
            self.training.zero_grad()
            self.rates.step()
            self.saves.after(step)

    def values(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.mark.parametrize("hosts", ["1", "2+1"])
def test_resuming_at_any_step_is_never_having_stopped(tmp_path: Path, hosts: str) -> None:
    """Two periods of DiLoCo, with batch statistics and a rate that changes."""

    def body(comm: Communicator) -> None:
        whole = Training(comm, tmp_path)
        whole.go_on(range(1, STEPS + 1))
        whole.saves.close()
        for stop in range(1, STEPS):
            later = Training(comm, tmp_path)
            pointers = [param.data_ptr() for param in later.model.parameters()]
            assert later.saves.load(stop) == stop
            later.go_on(range(stop + 1, STEPS + 1))
            later.saves.close()
            assert [param.data_ptr() for param in later.model.parameters()] == pointers
            for (name, value), wanted in zip(
                later.values().items(), whole.values().values(), strict=True
            ):
                assert torch.equal(value, wanted), name
            assert later.rates.state_dict() == whole.rates.state_dict()

    run_threads(sum(int(count) for count in hosts.split("+")), body, hosts=hosts)


@pytest.mark.parametrize(("old", "new"), [("2+1", "2"), ("1", "3"), ("3", "2+1")])
def test_another_number_of_ranks_goes_on_from_the_mean(tmp_path: Path, old: str, new: str) -> None:
    """Parameters and batch statistics; each from its own where as many load."""

    def size_of(hosts: str) -> int:
        return sum(map(int, hosts.split("+")))

    def saving(comm: Communicator) -> Any:
        whole = Training(comm, tmp_path)
        whole.go_on(range(1, 5))
        whole.saves.close()
        return whole.values()

    def loading(comm: Communicator) -> Any:
        later = Training(comm, tmp_path)
        said = pytest.warns(UserWarning, match="was saved by")
        with said if comm.rank == 0 else nullcontext():
            assert later.saves.load() == 4
        found, drawn = later.values(), later.noise.clone_state()
        later.go_on(range(5, 7))
        later.saves.close()
        assert later.training.averager.step == 6
        params = [param.detach().numpy().tobytes() for param in later.model.parameters()]
        return found, float(torch.rand((), generator=drawn)), params

    before = run_threads(size_of(old), saving, hosts=old)
    after = run_threads(size_of(new), loading, hosts=new)
    for rank, (found, *_) in enumerate(after):
        for name, value in found.items():
            theirs = [values[name] for values in before]
            wanted = theirs[rank] if len(before) == len(after) else torch.stack(theirs)
            if len(before) != len(after):
                wanted = wanted.double().mean(0).to(value.dtype)
            assert torch.allclose(value, wanted, rtol=1e-6, atol=1e-7), name
    assert len({drawn for _, drawn, _ in after}) == len(after)
    assert all(params == after[0][2] for *_, params in after)


def test_torchs_control_variates_begin_anew_on_another_number_of_ranks(tmp_path: Path) -> None:
    def made(comm: Communicator) -> tuple[nn.Linear, Any, Any]:
        model = nn.Linear(3, 1)
        ours.adopt(model, comm)
        training = ours.SCAFFOLD(torch.optim.SGD(model.parameters(), lr=0.1), 2, process_group=comm)
        parts = {"model": model, "training": training}
        return model, training, ours.Checkpoints(tmp_path, parts, comm, when=every(1))

    def controls(training: Any) -> list[torch.Tensor]:
        return [of["control"] for of in training.optim.state.values()]

    def saving(comm: Communicator) -> None:
        model, training, saves = made(comm)
        for _ in range(4):
            training.zero_grad()
            (model(torch.ones(2, 3)) * comm.rank).sum().backward()
            training.step()
        assert all(control.abs().min() > 0 for control in controls(training))
        saves.save(1)
        saves.close()

    def loading(comm: Communicator) -> None:
        _, training, saves = made(comm)
        said = pytest.warns(UserWarning, match="was saved by")
        with said if comm.rank == 0 else nullcontext():
            saves.load()
        saves.close()
        assert all(not control.any() for control in controls(training))

    run_threads(2, saving)
    run_threads(3, loading)


def test_every_dtype_of_a_module_comes_back(tmp_path: Path) -> None:
    model = nn.Module()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.bool):
        model.register_buffer(f"of_{str(dtype)[6:]}", torch.ones(2, 3).to(dtype))
    model.register_buffer("scalar", torch.tensor(3.0))
    model.register_buffer("complex", torch.tensor([1 + 2j]))
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    saves = ours.Checkpoints(tmp_path, {"model": model}, solo(), when=every(1))
    saves.save(1)
    for value in model.state_dict().values():
        value.zero_()
    assert saves.load() == 1
    for name, value in model.state_dict().items():
        assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name])
    saves.close()


def test_a_model_that_does_not_fit_keeps_its_values(tmp_path: Path) -> None:
    saves = ours.Checkpoints(tmp_path, {"model": nn.Linear(2, 2)}, solo(), when=every(1))
    saves.save(1)
    saves.close()
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    saves = ours.Checkpoints(tmp_path, {"model": model}, solo(), when=every(1))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        saves.load()
    assert torch.equal(model.weight, before)
    saves.close()


def test_what_is_no_state_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> object:
            return {"function": print}

        def set_extra_state(self, state: object) -> None: ...

    saves = ours.Checkpoints(tmp_path, {"model": Odd()}, solo(), when=every(1))
    with pytest.raises(TypeError, match="at state/model/_extra_state/function"):
        saves.save(1)
    with pytest.raises(CheckpointError, match="no other job"):
        ours.Checkpoints(tmp_path, {"model": Odd()}, solo(), when=every(1))
    saves.close()
