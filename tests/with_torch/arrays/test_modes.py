"""In every mode of torch rounds give the bits that they give outside, and tensors that train on.

Tried: no_grad, inference_mode, set_grad_enabled(False), autocast, a default dtype of float64, meta
as the default device and as a context, deterministic algorithms, FakeTensorMode, torch.func (grad,
vmap, functional_call), and hooks of backward, of accumulated gradients and of forward; around
adopt, averagers (made, place, average_parameters, sit_out, flush, state_dict), functions, the
wrapper (made, step, skip_step, flush, uneven, state dicts; state and buffers along), GradientStage
(made, average, passes), groups of torch.distributed and DDP's hook. Where torch's own step or pass
does not work in a mode, only what is ours is called there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

import localsgd.torch as ours
from localsgd import run_threads
from torch_modes import MODES, PASSING, STEPPING, Within, check_trainable, outside
from torch_ranks import run_ranks

RARELY = 1_000_000
# The generator is one of all threads.
SEEDING = Lock()


def trainer(comm: Any) -> nn.Module:
    """A model that has parameters, statistics, vectors of a spectral norm; others on each rank."""
    with SEEDING:
        torch.manual_seed(comm.rank)
        return nn.Sequential(
            spectral_norm(nn.Linear(4, 4, dtype=torch.float32)),
            nn.BatchNorm1d(4, dtype=torch.float32),
            nn.Linear(4, 1, dtype=torch.float32),
        )


def inputs_of(comm: Any, step: int) -> Tensor:
    return torch.arange(24, dtype=torch.float32).reshape(6, 4).add(comm.rank + step).sin()


def backward(model: nn.Module, comm: Any, step: int = 0) -> None:
    model.zero_grad()
    model(inputs_of(comm, step)).pow(2).mean().backward()


def values(model: nn.Module) -> list[Any]:
    return [tensor.tolist() for tensor in model.state_dict().values()]


def averagers(comm: Any, within: Within) -> Any:
    """Made, placed, averaged, sat out, flushed, saved and loaded."""
    model = trainer(comm)
    params = list(model.parameters())
    averager = within(lambda: ours.PeriodicModelAverager(2, 0, comm))
    within(lambda: averager.place(params))
    found = [within(lambda: averager.average_parameters(params))]
    check_trainable(params, leaves=True)
    for step in range(3):
        backward(model, comm, step)
        torch.optim.SGD(params, lr=0.1).step()
        found.append(within(lambda: averager.average_parameters(params)))
    found.append(within(lambda: averager.sit_out(params)))
    found.append(within(lambda: averager.flush(params)))
    saved = within(averager.state_dict)
    within(lambda: averager.load_state_dict(saved))
    backward(model, comm)
    check_trainable(params, leaves=True)
    return found, averager.step, values(model)


def hierarchies(comm: Any, within: Within) -> Any:
    """The first average gives places."""
    model = trainer(comm)
    averager = within(lambda: ours.HierarchicalModelAverager({1: 1, 2: comm.size}, 0, comm))
    for step in range(3):
        backward(model, comm, step)
        within(lambda: averager.average_parameters(iter(model.parameters())))
        check_trainable(model.parameters(), leaves=True)
    return values(model)


def functions(comm: Any, within: Within) -> Any:
    """Parameters, tensors and integers; those with a gradient; groups."""
    params = [Parameter(torch.full((3,), float(comm.rank**2))) for _ in range(3)]
    tensors = [torch.full((2,), 1.0 + comm.rank), torch.full((2,), 3 * comm.rank)]
    within(lambda: ours.average_parameters([params[0], *tensors], comm))
    params[1].grad = torch.zeros(3)
    within(lambda: ours.average_parameters_or_parameter_groups(params, comm))
    within(lambda: ours.average_parameters_or_parameter_groups([{"params": params}], comm))
    check_trainable(params, leaves=True)
    check_trainable(tensors, leaves=False)
    (params[0] * params[1]).sum().backward()
    return [tensor.tolist() for tensor in [*params, *tensors]]


def adopted(comm: Any, within: Within) -> Any:
    """Adoption, construction, a validation before training, training, state dicts."""
    model = trainer(comm)
    model.register_parameter("frozen", Parameter(torch.full((3,), 1.0 + comm.rank), False))
    frozen = model.get_parameter("frozen")
    counts = torch.full((2,), comm.rank, dtype=torch.int32)
    model.register_buffer("counts", counts)
    found = within(lambda: ours.adopt(model, comm))
    counts.fill_(comm.rank)
    inner = torch.optim.Adam(model[:3].parameters())  # type: ignore[index]
    averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
    optimizer = within(
        lambda: ours.PostLocalSGDOptimizer(inner, averager, state="mean", buffers=found.buffers)
    )
    within(optimizer.flush)
    for step in range(3):
        backward(model, comm, step)
        optimizer.step()
        within(optimizer.flush)
        check_trainable(model[:3].parameters(), leaves=True)  # type: ignore[index]
        check_trainable([*model.buffers(), frozen], leaves=False)
        check_trainable(
            [entry for state in inner.state.values() for entry in state.values()], leaves=False
        )
    saved = within(optimizer.state_dict)
    within(lambda: optimizer.load_state_dict(saved))
    backward(model, comm)
    optimizer.step()
    return values(model)


def made_state(comm: Any, within: Within) -> Any:
    """State that workers without data lack is made by the last round."""
    params = [Parameter(torch.full((2,), 1.0 + comm.rank)) for _ in range(2)]
    averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
    inner = torch.optim.Adam(params)
    optimizer = ours.PostLocalSGDOptimizer(inner, averager, state="mean")
    ends = ExitStack()
    ends.enter_context(optimizer.uneven())
    if comm.rank == 0:
        (params[0] * params[1]).sum().backward()
        optimizer.step()
    within(ends.close)
    optimizer.zero_grad()
    (params[0] * params[1]).sum().backward()
    optimizer.step()
    return [param.tolist() for param in params], [int(inner.state[p]["step"]) for p in params]


def forgotten(comm: Any, within: Within) -> Any:
    """State that begins anew."""
    model = trainer(comm)
    inner = torch.optim.Adagrad(model.parameters())
    optimizer = within(
        lambda: ours.PostLocalSGDOptimizer(
            inner, ours.PeriodicModelAverager(RARELY, RARELY, comm), state="reset"
        )
    )
    for step in range(2):
        backward(model, comm, step)
        optimizer.step()
        within(optimizer.flush)
    return values(model)


def staged(comm: Any, within: Within) -> Any:
    """A stage made in the mode averages passes outside; then at a call in it."""
    model = trainer(comm)
    averager = ours.PeriodicModelAverager(2, 10, comm)
    stage = within(lambda: ours.GradientStage(model, averager))
    check_trainable(model.parameters(), leaves=True)
    found = []
    for step in range(3):
        backward(model, comm, step)
        found.append(
            [param.grad.tolist() for param in model.parameters() if param.grad is not None]
        )
        with stage.no_sync():
            backward(model, comm, step + 1)
        found.append(within(stage.average))
        found.append(
            [param.grad.tolist() for param in model.parameters() if param.grad is not None]
        )
        check_trainable([param.grad for param in model.parameters()], leaves=False)
    found.append(within(lambda: stage.average(skip=comm.rank == 0)))
    return found, values(model)


SCENES = (averagers, hierarchies, functions, adopted, made_state, forgotten, staged)


def stepped(comm: Any, within: Within) -> Any:
    """Steps, steps left out, and uneven ends; the inner optimizer has made its state before."""
    model = trainer(comm)
    ours.adopt(model, comm)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    backward(model, comm)
    inner.step()
    averager = ours.PeriodicModelAverager(2, 1, comm)
    optimizer = ours.PostLocalSGDOptimizer(inner, averager, state="mean")
    for step in range(4):
        backward(model, comm, step)
        within(optimizer.step)
    within(optimizer.skip_step)

    def unevenly() -> None:
        with torch.inference_mode(False), optimizer.uneven():
            for step in range(1 + comm.rank):
                for param in model.parameters():
                    param.grad = param.detach() * step
                optimizer.step()

    within(unevenly)
    backward(model, comm)
    optimizer.step()
    check_trainable(model.parameters(), leaves=True)
    return averager.step, values(model)


@cache
def expected_of(scene: Callable[[Any, Within], Any], size: int) -> list[Any]:
    return run_threads(size, lambda comm: scene(comm, outside))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_ours_is_the_same_in_every_mode(mode: str, scene: Any) -> None:
    """To the bit, and training goes on."""
    assert run_threads(3, lambda comm: scene(comm, MODES[mode])) == expected_of(scene, 3)


@pytest.mark.parametrize("mode", STEPPING)
def test_steps_are_the_same_in_every_mode(mode: str) -> None:
    """What torch computes itself, elementwise here, is."""
    assert run_threads(2, lambda comm: stepped(comm, STEPPING[mode])) == expected_of(stepped, 2)


@pytest.mark.parametrize("scene", [s for s in (*SCENES, stepped) if s is not made_state])
def test_settings_of_the_process_change_nothing(scene: Any) -> None:
    """The default dtype and deterministic algorithms; torch's Adam computes in the former."""
    expected = expected_of(scene, 2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        found = run_threads(2, lambda comm: scene(comm, outside))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert found == expected


@pytest.mark.parametrize("size", [2, 3])
def test_groups_of_torch_are_the_same_in_every_mode(size: int) -> None:
    """Messages go through torch: found in the mode, connected there, averaged there."""

    def body(rank: int) -> Any:
        found = []
        for within in (outside, *MODES.values()):
            comm = within(ours.world)
            group = within(lambda comm=comm: comm.split(0))
            within(lambda group=group: ours.communicator(group))
            found.append([averagers(group, within), adopted(group, within)])
            state = within(lambda: ours.PostLocalSGDState(None, None, 3))
            found[-1].append(within(state.state_dict))
        return [entry == found[0] for entry in found]

    assert run_ranks(size, body) == [[True] * (1 + len(MODES))] * size


def test_passes_are_followed_in_every_mode_that_has_them() -> None:
    """By a stage and by DDP's hook. Worker r has inputs of r, so the gradient is 0.5."""

    def body(rank: int) -> Any:
        found = []
        for mode in PASSING:
            model = nn.Linear(2, 1, bias=False)
            staged = ours.GradientStage(model, ours.PeriodicModelAverager(2, 9))
            other = nn.Linear(2, 1, bias=False)
            ddp = DistributedDataParallel(other)
            ddp.register_comm_hook(ours.PostLocalSGDState(None, None, 9), ours.post_localSGD_hook)
            inputs = torch.full((1, 2), float(rank))

            def passes(ddp: Any = ddp, model: Any = model, inputs: Tensor = inputs) -> None:
                for module in (model, ddp):
                    for _ in range(2):
                        module.zero_grad()
                        module(inputs).sum().backward()

            MODES[mode](passes)
            for module in (model, other):
                assert module.weight.grad is not None
                found.append(module.weight.grad.tolist())
            del staged
        return found

    assert run_ranks(2, body) == [[[[0.5, 0.5]]] * 2 * len(PASSING)] * 2
