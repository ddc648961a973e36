"""How workers come to start equal: everything that a model saves becomes rank 0's, in place.

The parameters that training changes lie in arenas and are sent there. The rest is here: frozen
parameters, buffers of every dtype, those that are not saved included, and what modules save as
extra state, if it is a tensor. Whoever starts without that has it compared, once, at the first
average.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from localsgd.checks import agreed, difference_of, digest_of
from localsgd.comm.contract import Array, Communicator
from localsgd.torch.arrays.forms import Form, once
from localsgd.torch.arrays.sharded import check_memory

_PIECE_BYTES = 16 << 20
_EXTRA = "_extra_state"


def state_beside(model: nn.Module) -> dict[str, Tensor]:
    """What a model holds besides the parameters that require a gradient, by full name.

    Raises:
        TypeError, ValueError: for a tensor whose values this process does not hold.
    """
    found: dict[str, Tensor] = {
        name: param for name, param in model.named_parameters() if not param.requires_grad
    }
    found.update(model.named_buffers())
    for name, tensor in found.items():
        check_memory(
            "buffer" if not isinstance(tensor, nn.Parameter) else "parameter", name, tensor
        )
    for prefix, module in _with_extra_state(model):
        extra = module.get_extra_state()
        if isinstance(extra, Tensor):
            check_memory("extra state", prefix + _EXTRA, extra)
            found[prefix + _EXTRA] = extra
    return found


def described(tensors: Mapping[str, Tensor]) -> list[str]:
    """A line for every tensor that ranks must have alike."""
    return [f"{name!r} {tensor.dtype}{list(tensor.shape)}" for name, tensor in tensors.items()]


def start_equal(model: nn.Module, comm: Communicator) -> None:
    """Gives all ranks rank 0's values of what is ``state_beside`` the parameters. Collective.

    Needs memory of 16 MiB, and of the largest tensor that has gaps.

    Raises:
        MismatchError: on every rank, if the ranks' models differ; then nothing has changed.
    """
    tensors = agreed(comm, "models", lambda: state_beside(model), described)
    for tensor in tensors.values():
        _send(tensor, comm)
    if comm.rank != 0:
        for prefix, module in _with_extra_state(model):
            if prefix + _EXTRA in tensors:
                module.set_extra_state(tensors[prefix + _EXTRA])


def tell_difference(comm: Communicator, tensors: Mapping[str, Tensor]) -> None:
    """Says once, on rank 0, which of the tensors that should be equal differs first. Collective.

    It is no error: torch's averagers, too, begin from whatever the ranks hold.
    """
    lines = [
        f"{name!r} with digest {digest_of(_copied(_laid_out(tensor)[1]))[:16]}"
        for name, tensor in tensors.items()
    ]
    difference = difference_of(comm, lines)
    if difference is not None and comm.rank == 0:
        print(
            f"localsgd: the ranks start from different values: {difference}; "
            "localsgd.torch.adopt(model) gives all those of rank 0",
            file=sys.stderr,
        )


def _with_extra_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield f"{prefix}." if prefix else "", module


def _send(tensor: Tensor, comm: Communicator) -> None:
    """Gives all ranks rank 0's values of a tensor, in place. Collective."""
    laid, whole = _laid_out(tensor)
    for piece in torch.split(whole, _PIECE_BYTES) if whole.numel() else ():
        sent = _copied(piece)
        comm.broadcast(sent, 0)
        if comm.rank != 0:
            piece.copy_(torch.from_numpy(sent), non_blocking=True)
    if comm.rank != 0 and whole.data_ptr() != laid.data_ptr():
        laid.copy_(whole.view(laid.dtype).reshape(laid.shape), non_blocking=True)


def _laid_out(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The elements in their order in memory, and their bytes: the same memory, if it is dense."""
    laid = once(tensor.detach())
    laid = laid.permute(Form.of(laid).order)
    whole = laid.resolve_conj().resolve_neg().contiguous()
    return laid, whole.reshape(-1).view(torch.uint8)


def _copied(values: Tensor) -> Array:
    """A copy on the host. An array on a tensor's own memory would keep it from being resized."""
    copied: Array = values.cpu().clone().numpy()
    return copied
