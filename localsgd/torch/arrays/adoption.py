"""A whole model in place: its parameters and buffers as views of shared memory.

Names come from the module, so that ranks whose models differ learn at once which parameter is
not alike. Every object stays the one it was, at an address that does not change again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from localsgd.arrays import Arena, Rule
from localsgd.checks import agreed
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Communicator
from localsgd.torch.arrays.buffers import ModuleBuffers, settled_rules
from localsgd.torch.arrays.places import Placed, placed
from localsgd.torch.arrays.starting import start_equal
from localsgd.torch.comm import ProcessGroup, communicator, outside_modes

Start = Literal["broadcast", "keep"]

_ADOPTED: WeakKeyDictionary[nn.Module, Adopted] = WeakKeyDictionary()


@dataclass(frozen=True)
class Adopted:
    """What ``adopt`` has given a place.

    Attributes:
        comm: the workers that hold the model.
        params: the parameters that require a gradient.
        buffers: the buffers, for ``PostLocalSGDOptimizer``; None if there are none.
    """

    comm: Communicator
    params: Placed
    buffers: ModuleBuffers | None


@outside_modes()
def adopt(
    model: nn.Module,
    process_group: ProcessGroup = None,
    *,
    start: Start = "broadcast",
    rules: Mapping[str, Rule] | None = None,
) -> Adopted:
    """Gives a model's parameters their places, and all it holds the values of rank 0. Collective.

    The parameters that require a gradient move once and then stay: same objects, same memory
    format, tied weights tied; everything else stays where it is. Gradients get places from a
    ``GradientStage``, which alone needs them there. For a model that has been adopted this returns
    what it returned then, unless its parameters are others by now: new ones get places, too.

    Args:
        model: alike on all ranks in names, shapes, dtypes and memory formats.
        process_group: the workers that hold it; None for all. A rank outside of them keeps its
            model as it is, and gets neither params nor buffers.
        start: "broadcast" gives all the values of rank 0, as DDP does: of trained and frozen
            parameters, buffers of every dtype, and extra state that is a tensor; "keep" leaves each
            its own.
        rules: how buffers are averaged that are not to be as ``ModuleBuffers`` has it, by name or
            pattern (``"*.angles"``).

    Raises:
        TypeError: for a module that is none, or a shard.
        ValueError: for a model without trainable parameters, one adopted by other workers, an
            unknown ``start``, or a rule that is not of one buffer that can carry it.
        MismatchError: on every rank, if the models differ, with the first difference.
        MemoryError: on every rank, if the memory of a host does not suffice.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module of torch, got {model!r}")
    if start not in get_args(Start):
        raise ValueError(f"start must be one of {get_args(Start)}, got {start!r}")
    comm = communicator(process_group)
    if comm is NON_MEMBER:
        return Adopted(comm, Placed({}), None)
    known = _ADOPTED.get(model)
    if known is not None and known.comm is not comm:
        raise ValueError(
            f"model must have been adopted by this communicator, {comm}, got one of another, "
            f"{known.comm}"
        )
    if known is None:
        agreed(comm, "rules", lambda: settled_rules(model, rules), lambda _: [])
    params = placed(lambda: _trainable(model), comm, None if known is None else known.params)
    if known is not None and params is known.params:
        return known
    if start == "broadcast":
        params.bring()
        for arena in params.arenas if known is None else _new_arenas(params, known.params):
            comm.broadcast(arena.flat, 0)
        params.take()
        if known is None:
            start_equal(model, comm)
    if known is not None:
        buffers = known.buffers
    else:
        any_buffers = any(comm.collect(any(True for _ in model.buffers())))
        buffers = ModuleBuffers(model, comm, rules) if any_buffers else None
    _ADOPTED[model] = Adopted(comm, params, buffers)
    return _ADOPTED[model]


def _new_arenas(params: Placed, before: Placed) -> list[Arena]:
    """What holds the parameters that have come since."""
    known = {id(arena) for arena in before.whole_arenas}
    return [arena for arena in params.whole_arenas if id(arena) not in known]


def _trainable(model: nn.Module) -> Mapping[str, Tensor]:
    return {
        name: param
        for name, param in model.named_parameters(remove_duplicate=False)
        if param.requires_grad
    }
