"""Which tensors a call means: torch's ``params`` in all their shapes, and its filter.

Source: torch.distributed.algorithms.model_averaging.utils (PyTorch 2.13), whose functions these
are, in place and with the ranks' layouts compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from localsgd import averagers as core
from localsgd.checks import agreed
from localsgd.comm import NON_MEMBER, Communicator
from localsgd.comm.contract import Array, address_of
from localsgd.torch.arrays import Form, check_tensor, holds, placed
from localsgd.torch.comm import ProcessGroup, communicator, outside_modes

Params: TypeAlias = "Iterable[Parameter] | Iterable[dict[str, Any]]"


def get_params_to_average(params: Params) -> list[Tensor]:
    """The parameters that have a gradient, in their order, from parameters or groups of them.

    Decided by this rank alone; not collective.

    Raises:
        NotImplementedError: for an element that is neither a parameter nor a group.
        KeyError: for a group without ``"params"``.
    """
    return [tensor for _, tensor in _listed(params) if tensor.grad is not None]


def trained_params(params: Params) -> dict[str, Tensor]:
    """The parameters that training changes, by the name or the number that their group gives.

    These are those that require a gradient, whether or not they got one, and any other that
    has one; so a layer that was unused in this step on this rank changes nothing.

    Raises:
        NotImplementedError, KeyError: as ``get_params_to_average``.
    """
    return {name: tensor for name, tensor in _named(params).items() if _is_trained(tensor)}


def untrained_params(params: Params) -> dict[str, Tensor]:
    """The parameters that ``trained_params`` leaves out."""
    return {name: tensor for name, tensor in _named(params).items() if not _is_trained(tensor)}


def _is_trained(tensor: Tensor) -> bool:
    return tensor.requires_grad or tensor.grad is not None


def _named(params: Params) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in _listed(params):
        # Groups of different modules may use the same names.
        while found.get(name, tensor) is not tensor:
            name += " again"
        found[name] = tensor
    return found


def names_in(index: int, group: Mapping[str, Any]) -> list[str]:
    """The names of a group's parameters; numbers if it was not given any."""
    names: list[str] = group.get("param_names") or [
        f"{index}.{place}" for place in range(len(group["params"]))
    ]
    return names


@outside_modes()
def average_parameters(params: Iterable[Tensor], process_group: ProcessGroup) -> None:
    """Moves tensors to their mean over all workers, in place. Collective.

    Parameters are given a place in an arena by the first call and keep it. Integers are averaged
    as floating point, if there is any among the tensors, and truncated.

    Args:
        params: tensors, alike on all ranks in order, shape, dtype and memory format.
        process_group: the workers; None for all. Outside of it nothing happens.

    Raises:
        ValueError: if there are none.
        RuntimeError: if all are integers.
        TypeError: for a shard.
        MismatchError: on every rank, if they differ, or are invalid on another rank.
    """
    comm = communicator(process_group)
    tensors = {str(index): tensor for index, tensor in enumerate(params)}
    if comm is NON_MEMBER:
        return
    _check_floats(comm, list(tensors.values()))
    parameters = {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, Parameter) and holds(tensor.dtype)
    }
    others = [tensor for name, tensor in tensors.items() if name not in parameters]
    arrays: list[Any] = []
    finish: list[Callable[[], None]] = []
    if parameters:
        home = placed(lambda: parameters, comm)
        there = home.on_devices(comm, copied=False)
        for arena in there or ():
            arena.average(comm)
            arena.take()
        if there is None:
            home.bring()
            arrays.extend(home.arenas)
            finish.append(home.take)
    common = _common_dtype(tensors.values())
    for tensor in {id(tensor): tensor for tensor in others}.values():
        array, back = _array_of(tensor, common)
        arrays.append(array)
        finish.append(back)
    if arrays:
        core.average_parameters(arrays, comm)
    for back in finish:
        back()


def average_parameters_or_parameter_groups(params: Params, process_group: ProcessGroup) -> None:
    """Averages those of the parameters that have a gradient on this rank. Collective.

    Ranks on which others have one get an error, all of them; an averager does not ask.

    Raises:
        NotImplementedError, KeyError: as ``get_params_to_average``.
        ValueError, TypeError, MismatchError: as ``average_parameters``.
    """
    average_parameters(iter(get_params_to_average(params)), process_group)


def _listed(params: Params) -> list[tuple[str, Tensor]]:
    listed: list[tuple[str, Tensor]] = []
    for index, entry in enumerate(params):
        if isinstance(entry, Parameter):
            listed.append((str(index), entry))
        elif isinstance(entry, Mapping):
            listed.extend(zip(names_in(index, entry), entry["params"], strict=True))
        else:
            raise NotImplementedError(
                f"params must hold parameters or parameter groups, got {type(entry)}"
            )
    return listed


def _check_floats(comm: Communicator, tensors: list[Tensor]) -> None:
    """Agrees on what all tensors are, before any of them is given a place."""

    def prepare() -> list[Tensor]:
        if not tensors:
            raise ValueError("params must hold at least one tensor, got none")
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor) or holds(tensor.dtype):
                check_tensor(str(index), tensor)
        return tensors

    def lines(made: list[Tensor]) -> list[str]:
        return [f"tensor {index} {Form.of(tensor)}" for index, tensor in enumerate(made)]

    found = agreed(comm, "params", prepare, lines)
    if not any(tensor.dtype.is_floating_point or tensor.dtype.is_complex for tensor in found):
        raise RuntimeError("the mean of integers alone is none: give params of floating point")


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """What integers are averaged in: float32, or what the floating-point tensors need."""
    common = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            common = torch.promote_types(common, tensor.dtype)
    return common


def _array_of(tensor: Tensor, common: torch.dtype) -> tuple[Array, Callable[[], None]]:
    """A tensor's own memory or a copy of it, and what brings a copy's values back."""
    values = tensor.detach() if holds(tensor.dtype) else tensor.detach().to(common)
    form = Form.of(values)
    array = form.array(values.cpu())
    own = address_of(array) == tensor.data_ptr()

    def bring_back() -> None:
        if not own:
            tensor.detach().copy_(form.tensor(array))

    return array, bring_back
