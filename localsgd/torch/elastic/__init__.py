"""Training of torch's models that goes on when workers are lost."""

from localsgd.torch.elastic.survival import Survival

__all__ = ["Survival"]
