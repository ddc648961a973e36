"""A local step under a ``GradScaler``: what its protocol asks of an optimizer that wraps another.

torch calls the wrapper's step whatever it found, and leaves the finding and the scale with it for
the time of the call. The wrapper decides by the finding whether there is a local step. Dividing
gradients by the scale is torch's own: a scaler of the same scale steps the inner optimizer, which
has its gradients unscaled, or is handed the scale if it unscales in its kernel.

Source: torch.amp.GradScaler.step (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def local_step(optim: Optimizer, closure: Callable[[], Any] | None, left: Mapping[str, Any]) -> Any:
    """Takes a step; with scaled gradients as torch would, and none if they are not finite.

    Args:
        left: what a scaler left with the wrapper, nothing if none steps it. As "found_inf" whether
            any gradient is not finite, a plain 0 where there are none; as "grad_scale" what they
            are multiplied by, None once they have been unscaled.

    Returns:
        What the optimizer's step returned; None without a step.

    Raises:
        ValueError: from torch, for float16 gradients of an optimizer that cannot unscale itself.
    """
    arguments = () if closure is None else (closure,)
    found_inf, grad_scale = left.get("found_inf", 0), left.get("grad_scale")
    if found_inf:
        return None
    if grad_scale is None or not isinstance(found_inf, Tensor):
        return optim.step(*arguments)
    scaler = torch.amp.GradScaler(grad_scale.device.type, init_scale=grad_scale.item())
    # A scaler has its scale from the first call of scale() on, on the device of what it is given.
    scaler.scale(found_inf)
    return scaler.step(optim, *arguments)
