"""Where torch's tensors are: in the arrays of the core, without a copy."""

from localsgd.torch.arrays.adoption import adopt
from localsgd.torch.arrays.buffers import ModuleBuffers
from localsgd.torch.arrays.forms import Form, Home, holds
from localsgd.torch.arrays.on_device import DeviceArena
from localsgd.torch.arrays.pinned import pin
from localsgd.torch.arrays.place import Place, bring, place_of, take, wait_for_devices
from localsgd.torch.arrays.places import Placed, placed
from localsgd.torch.arrays.saving import with_arrays, with_tensors
from localsgd.torch.arrays.sharded import check_optimizer, check_tensor
from localsgd.torch.arrays.starting import tell_difference

__all__ = [
    "DeviceArena",
    "Form",
    "Home",
    "ModuleBuffers",
    "Place",
    "Placed",
    "adopt",
    "bring",
    "check_optimizer",
    "check_tensor",
    "holds",
    "pin",
    "place_of",
    "placed",
    "take",
    "tell_difference",
    "wait_for_devices",
    "with_arrays",
    "with_tensors",
]
