"""Where one of torch's tensors is: in an arena, so that a round needs no copy.

A tensor is given its place once, keeps it ever after, and is still the same object: the module,
the optimizer's state and the user's references stay valid. Each has a storage of just its own
size over the shared memory, so that saving one tensor saves one tensor. A tensor on another
device stays there, and has its place as a copy on the host.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor

from localsgd.arrays import Arena
from localsgd.torch.arrays.forms import Form, Home


@dataclass(frozen=True)
class Place:
    """One tensor's memory in an arena.

    Attributes:
        arena: the arena.
        name: the tensor's name there.
        form: how its memory is read.
        home: that memory.
    """

    arena: Arena
    name: str
    form: Form
    home: Home

    def gradient(self) -> Home:
        """The gradient's memory in the arena, in the form of the parameter."""
        return Home(self.form, self.arena.grad[self.name])


def bring(tensor: Tensor, home: Home) -> None:
    """Makes a home hold the tensor's values, and the tensor, on the CPU, lie there."""
    if not home.holds(tensor):
        home.tensor.copy_(tensor.detach(), non_blocking=True)
        if tensor.device.type == "cpu":
            tensor.data = home.tensor


def take(tensor: Tensor, home: Home) -> None:
    """Makes a tensor of another device hold the values at home."""
    if tensor.device.type != "cpu":
        tensor.detach().copy_(home.tensor, non_blocking=True)


def wait_for_devices(tensors: Iterable[Tensor]) -> None:
    """Returns once copies between the host and the tensors' devices have ended."""
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        torch.get_device_module(device).current_stream(device).synchronize()


_PLACES: dict[int, tuple[ref[Tensor], Place]] = {}
_LOCK = threading.Lock()


def place_of(tensor: Tensor) -> Place | None:
    """The place of a tensor, as long as its form is what it was."""
    found = _PLACES.get(id(tensor))
    if found is None or found[0]() is not tensor:
        return None
    place = found[1]
    if not place.form.fits(tensor):
        return None
    return place if place.home.holds(tensor) or place.form.orders(tensor) else None


def remember(tensor: Tensor, place: Place) -> None:
    key = id(tensor)

    def forget(gone: ref[Tensor]) -> None:
        with _LOCK:
            found = _PLACES.get(key)
            if found is not None and found[0] is gone:
                del _PLACES[key]

    with _LOCK:
        _PLACES[key] = (ref(tensor, forget), place)
