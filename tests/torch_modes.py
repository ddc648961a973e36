"""The modes of torch, each as a way to make a call within it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

Within = Callable[[Callable[[], Any]], Any]


def in_context(make: Callable[[], Any]) -> Within:
    def within(call: Callable[[], Any]) -> Any:
        with make():
            return call()

    return within


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def kept(around: Callable[[Callable[[], None]], Any]) -> Within:
    """What a call gives that something of torch's makes."""

    def within(call: Callable[[], Any]) -> Any:
        found: list[Any] = []

        def once() -> None:
            if not found:
                found.append(call())

        around(once)
        return found[0]

    return within


class Calling(nn.Module):
    """Calls something in its forward pass."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self.weight = Parameter(torch.ones(2))
        self.call = call

    def forward(self, inputs: Tensor) -> Tensor:
        self.call()
        return inputs * self.weight


def in_grad(call: Callable[[], None]) -> None:
    def loss(inputs: Tensor) -> Tensor:
        call()
        return inputs.sum()

    torch.func.grad(loss)(torch.ones(2))


def in_vmap(call: Callable[[], None]) -> None:
    def double(inputs: Tensor) -> Tensor:
        call()
        return 2 * inputs

    torch.vmap(double)(torch.ones(2, 3))


def in_functional_call(call: Callable[[], None]) -> None:
    torch.func.functional_call(Calling(call), {"weight": torch.zeros(2)}, (torch.ones(2),))


def in_backward_hook(call: Callable[[], None]) -> None:
    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(lambda _: call())
    leaf.sum().backward()


def in_accumulated_hook(call: Callable[[], None]) -> None:
    leaf = torch.ones(2, requires_grad=True)
    leaf.register_post_accumulate_grad_hook(lambda _: call())  # type: ignore[no-untyped-call]
    leaf.sum().backward()


def in_forward_hook(call: Callable[[], None]) -> None:
    module = nn.Identity()
    module.register_forward_hook(lambda *_: call())
    module(torch.ones(2))


def outside(call: Callable[[], Any]) -> Any:
    return call()


# In which torch's optimizers step.
STEPPING: dict[str, Within] = {
    "no_grad": in_context(torch.no_grad),
    "inference_mode": in_context(torch.inference_mode),
    "no gradients": in_context(lambda: torch.set_grad_enabled(False)),
    "autocast": in_context(lambda: torch.autocast("cpu", torch.bfloat16)),
    "default device": in_context(default_device),
    "device": in_context(lambda: torch.device("meta")),
    "backward hook": kept(in_backward_hook),
    "accumulated hook": kept(in_accumulated_hook),
    "forward hook": kept(in_forward_hook),
    "functional_call": kept(in_functional_call),
}
# In which only what is ours works.
OTHERS: dict[str, Within] = {
    "grad": kept(in_grad),
    "vmap": kept(in_vmap),
    "FakeTensorMode": in_context(FakeTensorMode),
}
MODES = {**STEPPING, **OTHERS}
# In which there are backward passes.
PASSING = ("autocast", "default device", "device", "forward hook")


def check_trainable(tensors: Any, *, leaves: bool) -> None:
    """They are what training made: no inference tensors, and parameters still leaves."""
    for tensor in tensors:
        assert not tensor.is_inference()
        assert tensor.is_leaf and tensor.grad_fn is None
        assert tensor.requires_grad == leaves
        assert tensor.device.type == "cpu"
