"""Training that goes on when workers are lost."""

from localsgd.elastic.survival import Survival

__all__ = ["Survival"]
