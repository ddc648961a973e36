"""Where training goes on after it has ended: everything saved, and loaded to the bit."""

from localsgd.checkpoint.checkpoints import Checkpoints
from localsgd.checkpoint.preemption import Preempted
from localsgd.checkpoint.savable import Part, has_mean
from localsgd.checkpoint.tree import flattened, restored
from localsgd.checkpoint.writer import CheckpointError

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Part",
    "Preempted",
    "flattened",
    "has_mean",
    "restored",
]
