"""What the core saves, as torch keeps it: arrays in a state dict are tensors there.

``torch.load`` takes tensors from a file that it does not trust, and arrays of numpy not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor


def with_tensors(saved: Any) -> Any:
    """The same with tensors for arrays, on their memory."""
    if isinstance(saved, Mapping) and not isinstance(saved, Counter):
        return {key: with_tensors(value) for key, value in saved.items()}
    if type(saved) in (list, tuple):
        return type(saved)(with_tensors(value) for value in saved)
    if not isinstance(saved, np.ndarray):
        return saved
    if saved.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(saved.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(saved)


def with_arrays(saved: Any) -> Any:
    """The same with arrays for tensors, on their memory where it is the host's."""
    if isinstance(saved, Mapping) and not isinstance(saved, Counter):
        return {key: with_arrays(value) for key, value in saved.items()}
    if type(saved) in (list, tuple):
        return type(saved)(with_arrays(value) for value in saved)
    if not isinstance(saved, Tensor):
        return saved
    values = saved.detach().cpu()
    if values.dtype == torch.bfloat16:
        return values.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return values.numpy()
