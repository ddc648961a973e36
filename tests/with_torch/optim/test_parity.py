"""Local optimizers and learning rates agree with torch.optim: the same numbers over 100 steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from localsgd import Arena, lr, optim, solo

STEPS = 100
OPTIONS: list[tuple[Any, Any, dict[str, Any]]] = [
    (optim.SGD, torch.optim.SGD, {"lr": 0.05}),
    (optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    (optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    (optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    (optim.SGD, torch.optim.SGD, {"lr": 0.001, "maximize": True}),
    (optim.Adam, torch.optim.Adam, {"lr": 0.05}),
    (optim.Adam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    (optim.Adam, torch.optim.Adam, {"lr": 0.05, "amsgrad": True}),
    (optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    (optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True}),
    (optim.Adagrad, torch.optim.Adagrad, {"lr": 0.5}),
    (
        optim.Adagrad,
        torch.optim.Adagrad,
        {"lr": 0.5, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    (optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01}),
    (optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    (optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
]


def names(value: object) -> str:
    if isinstance(value, dict):
        return "-".join(f"{key}={entry}" for key, entry in value.items())
    return getattr(value, "__name__", str(value))


def gradient(values: Any, step: int, target: Any) -> Any:
    """Of a quadratic, with noise that is the same for both."""
    noise = np.random.default_rng(step).normal(size=target.shape).astype(np.float32)
    return values - target + 0.1 * noise


def both(
    ours: Any, theirs: Any, shape: tuple[int, ...], options: dict[str, Any], steps: int
) -> tuple[optim.Optimizer, np.ndarray, Any, np.ndarray]:
    """Either optimizer and its parameters after the same steps."""
    rng = np.random.default_rng(0)
    start, target = rng.normal(size=(2, *shape)).astype(np.float32)
    arena = Arena({"w": start}, solo())
    optimizer = ours(arena, **options)
    parameter = torch.nn.Parameter(torch.tensor(start))
    reference = theirs([parameter], **options)
    for step in range(steps):
        arena.grad["w"] = gradient(arena["w"], step, target)
        parameter.grad = torch.tensor(gradient(parameter.detach().numpy(), step, target))
        optimizer.step()
        reference.step()
    return optimizer, arena["w"], reference, parameter.detach().numpy()


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIONS, ids=names)
def test_parameters_agree_to_rounding_after_100_steps(
    ours: Any, theirs: Any, options: dict[str, Any]
) -> None:
    """Every step rounds once or twice: 100 of them may differ by some 10 ulp of the values."""
    _, mine, _, other = both(ours, theirs, (40, 50), options, STEPS)
    np.testing.assert_allclose(mine, other, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIONS, ids=names)
def test_a_state_dict_of_torchs_goes_on_in_ours(
    ours: Any, theirs: Any, options: dict[str, Any]
) -> None:
    """Keyed by index there, by name here; three steps after the load agree to rounding."""
    rng = np.random.default_rng(0)
    start, target = rng.normal(size=(2, 6)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(start))
    reference = theirs([parameter], **options)

    def advance(step: int) -> None:
        parameter.grad = torch.tensor(gradient(parameter.detach().numpy(), step, target))
        reference.step()

    for step in range(5):
        advance(step)
    arena = Arena({"w": parameter.detach().numpy().copy()}, solo())
    resumed = ours(arena, lr=123.0)
    resumed.load_state_dict(reference.state_dict())
    for step in range(5, 8):
        advance(step)
        arena.grad["w"] = gradient(arena["w"], step, target)
        resumed.step()
    np.testing.assert_allclose(arena["w"], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.02},
        {"lr": 0.02, "nesterov": False, "weight_decay": 0.0},
        {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "momentum": 0.8},
    ],
    ids=names,
)
def test_muon_agrees_to_the_bfloat16_in_which_torch_iterates(
    shape: tuple[int, int], options: dict[str, Any]
) -> None:
    """bfloat16 rounds to 1/256, fifteen products in a row: less than 5 % of the step's length."""
    start = both(optim.Muon, torch.optim.Muon, shape, options, 0)[1]
    optimizer, mine, reference, other = both(optim.Muon, torch.optim.Muon, shape, options, 1)
    assert np.linalg.norm(mine - other) < 0.05 * np.linalg.norm(mine - start)
    momentum = reference.state[reference.param_groups[0]["params"][0]]["momentum_buffer"]
    np.testing.assert_allclose(
        optimizer.state["w"]["momentum_buffer"], momentum.numpy(), rtol=1e-6, atol=1e-7
    )


def torch_rates(make: Callable[[Any], Any], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


schedulers = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("rate", "make"),
    [
        (lr.decay(7, 0.3), lambda o: schedulers.StepLR(o, 7, 0.3)),
        (lr.milestones([3, 20, 21], 0.5), lambda o: schedulers.MultiStepLR(o, [3, 20, 21], 0.5)),
        (lr.linear(9, 0.25, 0.75), lambda o: schedulers.LinearLR(o, 0.25, 0.75, 9)),
        (lr.cosine(40, minimum=0.05), lambda o: schedulers.CosineAnnealingLR(o, 40, 0.05)),
        (
            lr.one_cycle(40, rising=0.3),
            lambda o: schedulers.OneCycleLR(o, 0.8, 40, cycle_momentum=False),
        ),
        (
            lr.one_cycle(40, rising=0.1, start_divisor=5.0, end_divisor=20.0),
            lambda o: schedulers.OneCycleLR(
                o, 0.8, 40, None, None, 0.1, "cos", False, div_factor=5.0, final_div_factor=20.0
            ),
        ),
        (
            lr.from_function(lambda step: 1 / (1 + step)),
            lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
        ),
        (
            lr.chain([lr.linear(6, 0.1), lr.cosine(20), lr.constant(0.5)], [6, 20]),
            lambda o: schedulers.SequentialLR(
                o,
                [
                    schedulers.LinearLR(o, 0.1, 1.0, 6),
                    schedulers.CosineAnnealingLR(o, 20),
                    schedulers.ConstantLR(o, 0.5, 1000),
                ],
                [6, 20],
            ),
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, lr.Rate) else "",
)
def test_learning_rates_agree_at_every_step(rate: lr.Rate, make: Callable[[Any], Any]) -> None:
    """torch multiplies its way from step to step, so the last digits differ."""
    expected = torch_rates(make, 40)
    np.testing.assert_allclose([rate.at(step, 0.8) for step in range(40)], expected, rtol=1e-12)
