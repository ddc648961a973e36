"""Where training goes on after it has ended, for torch's modules and optimizers."""

from localsgd.torch.checkpoint.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
