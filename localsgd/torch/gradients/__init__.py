"""Which gradient torch's optimizers step with."""

from localsgd.torch.gradients.hook import PostLocalSGDState, post_localSGD_hook
from localsgd.torch.gradients.stage import GradientStage

__all__ = [
    "GradientStage",
    "PostLocalSGDState",
    "post_localSGD_hook",
]
