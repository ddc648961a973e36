"""What the comparisons with torch train: a stack of linear layers, and the shapes of ResNet-50."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim import Optimizer

WIDTH, DEPTH, BATCH = 1024, 8, 32


def linear_layers() -> nn.Module:
    """Equal on all ranks."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))


def inner_optimizer(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def training_step(model: nn.Module, optimizer: Optimizer, rank: int) -> Callable[[], None]:
    """A step on this rank's own batch: forward, backward, update."""
    random = torch.Generator().manual_seed(rank)
    inputs, targets = (torch.randn(BATCH, WIDTH, generator=random) for _ in range(2))

    def step() -> None:
        optimizer.zero_grad()
        # type: torch does not annotate it
        nn.functional.mse_loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def resnet50_parameters() -> list[nn.Parameter]:
    """161 parameters of the shapes of ResNet-50 (He et al., arXiv 1512.03385), with gradients."""
    params = [nn.Parameter(torch.ones(shape)) for shape in _resnet50_shapes()]
    for param in params:
        param.grad = torch.zeros_like(param)
    return params


def _resnet50_shapes() -> Iterator[tuple[int, ...]]:
    yield from _convolution(64, 3, 7)
    channels = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from _convolution(planes, channels, 1)
            yield from _convolution(planes, planes, 3)
            yield from _convolution(4 * planes, planes, 1)
            if block == 0:
                yield from _convolution(4 * planes, channels, 1)
            channels = 4 * planes
    yield from ((1000, channels), (1000,))


def _convolution(outputs: int, inputs: int, width: int) -> Iterator[tuple[int, ...]]:
    """A convolution's weight, then scale and shift of the normalisation after it."""
    yield from ((outputs, inputs, width, width), (outputs,), (outputs,))
