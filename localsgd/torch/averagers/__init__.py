"""What becomes of the workers' average, under torch's names."""

from localsgd.torch.averagers.adapting import CoreAverager, ModelAverager
from localsgd.torch.averagers.hierarchical import HierarchicalModelAverager
from localsgd.torch.averagers.periodic import PeriodicModelAverager
from localsgd.torch.averagers.selecting import (
    average_parameters,
    average_parameters_or_parameter_groups,
    get_params_to_average,
    names_in,
)

__all__ = [
    "CoreAverager",
    "HierarchicalModelAverager",
    "ModelAverager",
    "PeriodicModelAverager",
    "average_parameters",
    "average_parameters_or_parameter_groups",
    "get_params_to_average",
    "names_in",
]
