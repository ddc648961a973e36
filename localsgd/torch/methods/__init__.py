"""Front doors: an algorithm of the literature on torch's optimizers in one line."""

from localsgd.torch.methods.delayed import OverlappedSGD
from localsgd.torch.methods.diloco import DiLoCo, StreamingDiLoCo
from localsgd.torch.methods.easgd import EASGD
from localsgd.torch.methods.front_door import FrontDoor
from localsgd.torch.methods.local_sgd import LocalSGD
from localsgd.torch.methods.scaffold import SCAFFOLD
from localsgd.torch.methods.slow_momentum import SlowMo

__all__ = [
    "EASGD",
    "SCAFFOLD",
    "DiLoCo",
    "FrontDoor",
    "LocalSGD",
    "OverlappedSGD",
    "SlowMo",
    "StreamingDiLoCo",
]
