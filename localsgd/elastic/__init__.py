"""Training that goes on when workers are lost."""

from localsgd.elastic.survival import Survival
from localsgd.elastic.trained import Trained

__all__ = ["Survival", "Trained"]
