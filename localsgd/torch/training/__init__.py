"""What a job steps: an optimizer to torch, and its parts."""

from localsgd.torch.training.wrapper import PostLocalSGDOptimizer

__all__ = [
    "PostLocalSGDOptimizer",
]
