"""What becomes of the workers' mean: optimizers that step from the last anchor towards it."""

from localsgd.outer.bmuf import BMUF
from localsgd.outer.fedopt import Adagrad, Adam, Yogi
from localsgd.outer.outer_optimizer import Block, OuterOptimizer
from localsgd.outer.sgd import SGD
from localsgd.outer.slowmo import HasGroups, SlowMo
from localsgd.outer.using import using

__all__ = [
    "BMUF",
    "SGD",
    "Adagrad",
    "Adam",
    "Block",
    "HasGroups",
    "OuterOptimizer",
    "SlowMo",
    "Yogi",
    "using",
]
