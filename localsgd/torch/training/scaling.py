"""A local step under a ``GradScaler``: what its protocol asks of an optimizer that wraps another.

torch calls the wrapper's step whatever it found, and leaves the finding and the scale with it for
the time of the call. The wrapper decides by the finding whether there is a local step. Dividing
gradients by the scale is torch's own: a scaler of the same scale steps the inner optimizer, which
has its gradients unscaled, or is handed the scale if it unscales in its kernel.

Source: torch.amp.GradScaler.step (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def scaled_step(
    optim: Optimizer,
    closure: Callable[[], Any] | None,
    found_inf: Tensor | int,
    grad_scale: Tensor | None,
) -> Any:
    """Takes a step with scaled gradients, as torch would; none if they are not finite.

    Args:
        found_inf: whether any is not finite; a plain 0 where there are no gradients.
        grad_scale: what the gradients are multiplied by; None once they have been unscaled.

    Returns:
        What the optimizer's step returned; None without a step.

    Raises:
        ValueError: from torch, for float16 gradients of an optimizer that cannot unscale itself.
    """
    arguments = () if closure is None else (closure,)
    if found_inf:
        return None
    if grad_scale is None or not isinstance(found_inf, Tensor):
        return optim.step(*arguments)
    scaler = torch.amp.GradScaler(grad_scale.device.type, init_scale=grad_scale.item())
    # A scaler has its scale from the first call of scale() on, on the device of what it is given.
    scaler.scale(found_inf)
    return scaler.step(optim, *arguments)
