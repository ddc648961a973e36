"""What becomes of the workers' average."""

from localsgd.averagers.along import Companion
from localsgd.averagers.base import ModelAverager
from localsgd.averagers.hierarchical import HierarchicalModelAverager
from localsgd.averagers.oneshot import average_parameters
from localsgd.averagers.periodic import PeriodicModelAverager

__all__ = [
    "Companion",
    "HierarchicalModelAverager",
    "ModelAverager",
    "PeriodicModelAverager",
    "average_parameters",
]
