"""A whole model in place: parameters, their gradients and buffers as views of shared memory.

Names come from the module, so that ranks whose models differ learn at once which parameter is
not alike. Every object stays the one it was, at an address that does not change again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from localsgd.buffers import Rule
from localsgd.comm.base import Communicator
from localsgd.torch.buffers import ModuleBuffers, has_averaged_buffers
from localsgd.torch.groups import ProcessGroup, communicator
from localsgd.torch.places import Placed, placed

Start = Literal["broadcast", "keep"]

_ADOPTED: WeakKeyDictionary[nn.Module, Adopted] = WeakKeyDictionary()


class Adopted:
    """What ``adopt`` has given a place.

    Attributes:
        comm: the workers that hold the model.
        params: the parameters that require a gradient.
        buffers: those that have an average, for ``PostLocalSGDOptimizer``; None if there are none.
        on_gradient: called with each parameter whose gradient has become complete in a backward
            pass, once the gradient is in place; None for nothing.
    """

    def __init__(self, comm: Communicator, params: Placed, buffers: ModuleBuffers | None) -> None:
        """Follows the gradients of ``params``, whose arenas must have a buffer for them."""
        self.comm, self.params, self.buffers = comm, params, buffers
        self.on_gradient: Callable[[Tensor], None] | None = None
        self._homes = {id(param): place.gradient() for param, place in params}
        myself = ref(self)

        def accumulated(param: Tensor) -> None:
            # Weakly, since a parameter must not keep the memory of a model that is gone.
            adopted = myself()
            if adopted is not None:
                adopted.bring_gradient(param)
                if adopted.on_gradient is not None:
                    adopted.on_gradient(param)

        for param, _ in params:
            # type: torch does not annotate it
            param.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
            self.bring_gradient(param)

    def gradient(self, param: Tensor) -> Tensor:
        """The gradient's memory in the arena, on the host, as a tensor like the parameter."""
        return self._homes[id(param)]

    def bring_gradient(self, param: Tensor) -> None:
        """Makes the place hold a parameter's gradient, and the gradient, on the CPU, lie there.

        A gradient that has a graph of its own is left where it is, and so is a sparse one.
        """
        found, home = param.grad, self._homes[id(param)]
        if found is None or found.data_ptr() == home.data_ptr() or found.requires_grad:
            return
        if found.layout is torch.strided:
            home.copy_(found, non_blocking=True)
            if found.device.type == "cpu":
                param.grad = home


def adopt(
    model: nn.Module,
    process_group: ProcessGroup = None,
    *,
    start: Start = "broadcast",
    rules: Mapping[str, Rule] | None = None,
) -> Adopted:
    """Gives a model's parameters, gradients and buffers their places. Collective.

    The parameters that require a gradient and the buffers that have an average move once and then
    stay: same objects, same memory format, tied weights tied. Gradients come to their place as
    the backward pass computes them, whether or not they were set to None before it. Once a model
    has been adopted this returns what it returned then.

    Args:
        model: alike on all ranks in names, shapes, dtypes and memory formats.
        process_group: the workers that hold it; None for all.
        start: "broadcast" gives all the values of rank 0, as DDP does; "keep" leaves each its
            own.
        rules: how buffers are averaged that are not to be as ``ModuleBuffers`` has it, by name.

    Raises:
        TypeError: for a module that is none, or a shard.
        ValueError: for a model without trainable parameters, one adopted by other workers, or
            an unknown ``start``.
        MismatchError: on every rank, if the models differ, with the first difference.
        MemoryError: on every rank, if the memory of a host does not suffice.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module of torch, got {model!r}")
    if start not in get_args(Start):
        raise ValueError(f"start must be one of {get_args(Start)}, got {start!r}")
    comm = communicator(process_group)
    known = _ADOPTED.get(model)
    if known is not None:
        if known.comm is not comm:
            raise ValueError(f"model must have been adopted by {comm}, got one of {known.comm}")
        return known
    params = placed(lambda: _trainable(model), comm, grad=True)
    for arena in params.whole_arenas:
        arena.add_grad()
    if start == "broadcast":
        params.bring()
        for arena in params.arenas:
            comm.broadcast(arena.flat, 0)
        params.take()
    buffers = None
    if any(comm.collect(has_averaged_buffers(model))):
        buffers = ModuleBuffers(model, comm, rules or {}, start)
    _ADOPTED[model] = Adopted(comm, params, buffers)
    return _ADOPTED[model]


def _trainable(model: nn.Module) -> Mapping[str, Tensor]:
    return {
        name: param
        for name, param in model.named_parameters(remove_duplicate=False)
        if param.requires_grad
    }
