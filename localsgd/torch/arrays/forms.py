"""How a torch tensor and a numpy array are the same memory.

An arena holds a tensor's elements in the order in which they lie in memory, not in the order of
its dimensions, so a ``channels_last`` weight keeps its layout. bfloat16 goes by its bits and
complex numbers by their parts; nothing is converted and nothing copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from localsgd.comm.contract import Array

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.complex64: np.dtype(np.float32),
    torch.complex128: np.dtype(np.float64),
}


def holds(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype can lie in an arena."""
    return dtype in _NUMPY


def as_array(dtype: torch.dtype) -> np.dtype[Any] | None:
    """The dtype of an array on the memory of tensors of this one; None if numpy has none."""
    known = _NUMPY.get(dtype)
    if known is not None or dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        return known
    try:
        return torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
    except TypeError:
        return None


@dataclass(frozen=True)
class Form:
    """What a flat run of memory must be told to become a tensor.

    Attributes:
        dtype: the tensor's.
        shape: the tensor's.
        order: its dimensions, the slowest first.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """The form of a tensor; row-major if its elements have gaps or overlap."""
        rising = range(tensor.dim())
        strides = tensor.stride()
        order = tuple(sorted(rising, key=lambda dim: -strides[dim]))
        dense = tensor.detach().permute(order).is_contiguous()
        return cls(tensor.dtype, tuple(tensor.shape), order if dense else tuple(rising))

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """The dtype of the array, that of the parts for complex numbers."""
        return _NUMPY[self.dtype]

    @property
    def array_shape(self) -> tuple[int, ...]:
        """The shape of the array: the tensor's in memory order."""
        parts = (2,) if self.dtype.is_complex else ()
        return (*(self.shape[dim] for dim in self.order), *parts)

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor has this dtype and shape."""
        return tensor.dtype == self.dtype and tensor.shape == self.shape

    def orders(self, tensor: Tensor) -> bool:
        """Whether a tensor of this shape has its elements in this order."""
        mine, its = (
            [dim for dim in form.order if self.shape[dim] > 1] for form in (self, Form.of(tensor))
        )
        return mine == its

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        rows = "" if self.order == tuple(range(len(self.order))) else f" in order {self.order}"
        return f"{name}{list(self.shape)}{rows}"

    def array(self, tensor: Tensor) -> Array:
        """The memory of a CPU tensor of this form; of a copy if it has gaps or overlaps."""
        laid = tensor.detach().resolve_conj().resolve_neg().permute(self.order).contiguous()
        if self.dtype.is_complex:
            laid = torch.view_as_real(laid)
        if self.dtype == torch.bfloat16:
            return laid.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        array: Array = laid.numpy()
        return array

    def tensor(self, array: Array) -> Tensor:
        """A tensor of this form on the memory of an array, with a storage of just that size."""
        if self.dtype == torch.bfloat16:
            laid = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        else:
            laid = torch.from_numpy(array)
        return self.shaped(laid)

    def shaped(self, laid: Tensor) -> Tensor:
        """The tensor of this form whose elements lie in memory as these, of ``array_shape``."""
        if self.dtype.is_complex:
            laid = torch.view_as_complex(laid)
        back = sorted(range(len(self.order)), key=lambda place: self.order[place])
        return laid.permute(back)


def once(tensor: Tensor) -> Tensor:
    """A view of every element once, where some are one memory, as in what ``expand`` gives."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


class Home:
    """Memory in which a tensor of a form lies, or of which it is a copy on another device.

    Storages can be moved away from it: ``share_memory_`` and the queues of torch.multiprocessing
    do that, to all tensors that share one. What counts is therefore the address.
    """

    def __init__(self, form: Form, array: Array) -> None:
        """Takes memory of ``form.array_shape``."""
        self._form, self._array = form, array
        self._tensor = form.tensor(array)
        self._address = self._tensor.data_ptr()

    @property
    def tensor(self) -> Tensor:
        """A tensor on this memory, shaped as the form; tensors that lie here share its storage."""
        if self._tensor.data_ptr() != self._address:
            self._tensor = self._form.tensor(self._array)
        return self._tensor

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor of this form lies here."""
        return tensor.data_ptr() == self._address
