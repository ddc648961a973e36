"""Where the numbers are: named arrays in one buffer that can be averaged."""

from localsgd.arrays.arena import Arena, Arenas, FlatArrays, Subset, as_arenas
from localsgd.arrays.buffers import Buffers, require_equal
from localsgd.arrays.elsewhere import Elsewhere
from localsgd.arrays.fragments import Plan, balanced, checked_plan, fragments_of, strided
from localsgd.arrays.layout import check_arrays
from localsgd.arrays.rules import (
    Derived,
    Rule,
    Variance,
    WeightedMean,
    checked_rules,
    matched_rules,
)

__all__ = [
    "Arena",
    "Arenas",
    "Buffers",
    "Derived",
    "Elsewhere",
    "FlatArrays",
    "Plan",
    "Rule",
    "Subset",
    "Variance",
    "WeightedMean",
    "as_arenas",
    "balanced",
    "check_arrays",
    "checked_plan",
    "checked_rules",
    "fragments_of",
    "matched_rules",
    "require_equal",
    "strided",
]
