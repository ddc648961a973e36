"""Which gradient a worker steps with."""

from localsgd.gradients.stage import GradientStage, divide, warmup_of

__all__ = [
    "GradientStage",
    "divide",
    "warmup_of",
]
