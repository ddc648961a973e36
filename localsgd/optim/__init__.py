"""How one worker takes a local step."""

from localsgd.optim.adagrad import Adagrad
from localsgd.optim.adam import Adam
from localsgd.optim.adamw import AdamW
from localsgd.optim.block import Block
from localsgd.optim.lion import Lion
from localsgd.optim.muon import Muon
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.rmsprop import RMSprop
from localsgd.optim.saved import Loaded
from localsgd.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Block",
    "Lion",
    "Loaded",
    "Muon",
    "Optimizer",
    "RMSprop",
]
