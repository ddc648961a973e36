"""What the adapter does with tensors is the same in every mode that torch may be in.

Torch's modes change what is made and what may be written: tensors of ``inference_mode`` cannot be
trained, autocast rounds products, and inside of
``torch.func`` or a ``FakeTensorMode`` tensors have no memory. They are the user's, for the user's
computations; whatever moves, makes or averages tensors here runs outside of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

_FAKE = torch._C._TorchDispatchModeKey.FAKE


@contextmanager
def outside_modes() -> Iterator[None]:
    """Leaves, in this thread, all modes that are about values; also a decorator.

    Modes that look on, such as profilers and counters of operations, stay.
    """
    fake = torch._C._unset_dispatch_mode(_FAKE)
    try:
        # The first leaves inference mode and lets gradients be recorded, the second does not.
        with (
            temporarily_clear_interpreter_stack(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch._C._DisableAutocast(),
        ):
            yield
    finally:
        if fake is not None:
            torch._C._set_dispatch_mode(fake)
        # Weights that autocast has rounded already may be others now.
        torch.clear_autocast_cache()


def owner_of(tensor: Tensor) -> str | None:
    """The mode or transformation that a tensor belongs to; None for an ordinary one."""
    if tensor.is_inference():
        return "torch.inference_mode"
    if _functorch.is_functorch_wrapped_tensor(tensor):
        return "a transformation of torch.func"
    if any(kind.__name__ == "FakeTensor" for kind in type(tensor).__mro__):
        return "a FakeTensorMode"
    return None
