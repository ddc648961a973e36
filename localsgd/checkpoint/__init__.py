"""Where training goes on after it has ended: everything saved, and loaded to the bit."""

from localsgd.checkpoint.checkpoints import CheckpointError, Checkpoints

__all__ = ["CheckpointError", "Checkpoints"]
