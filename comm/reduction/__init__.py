"""How several ranks' numbers become one, whichever memory they lie in."""

from .arithmetic import scaled_weights, shifted_mean
from .calls import Reductions
from .fused import Job
from .native import ReducingTransport
from .route import Reducer

__all__ = [
    "Job",
    "Reducer",
    "ReducingTransport",
    "Reductions",
    "scaled_weights",
    "shifted_mean",
]
