"""Front doors: an algorithm of the literature in one line."""

from localsgd.methods import recipes
from localsgd.methods.control_variates import ControlVariates, check_plain
from localsgd.methods.decoupled_diloco import DecoupledDiLoCo
from localsgd.methods.delayed import OverlappedSGD
from localsgd.methods.diloco import DiLoCo, StreamingDiLoCo
from localsgd.methods.easgd import EASGD
from localsgd.methods.front_door import FrontDoor
from localsgd.methods.local_sgd import LocalSGD
from localsgd.methods.look_ahead import check_nesterov, look_ahead_of
from localsgd.methods.recipes import Recipe, Setting
from localsgd.methods.scaffold import SCAFFOLD
from localsgd.methods.slow_momentum import SlowMo

__all__ = [
    "EASGD",
    "SCAFFOLD",
    "ControlVariates",
    "DecoupledDiLoCo",
    "DiLoCo",
    "FrontDoor",
    "LocalSGD",
    "OverlappedSGD",
    "Recipe",
    "Setting",
    "SlowMo",
    "StreamingDiLoCo",
    "check_nesterov",
    "check_plain",
    "look_ahead_of",
    "recipes",
]
