"""How one worker takes a local step."""

from localsgd.optim.adamw import AdamW
from localsgd.optim.base import Block, Optimizer
from localsgd.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "Block", "Optimizer"]
