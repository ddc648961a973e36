"""Is what a user gave usable, and alike on all ranks."""

from localsgd.checks.agreement import (
    agreed,
    agreed_among,
    agreed_beside,
    difference_of,
    digest_of,
    lines_of_values,
    workers_of,
)
from localsgd.checks.values import caller_level, checked_count, checked_flag, checked_number
from localsgd.checks.words import name_of, words_of

__all__ = [
    "agreed",
    "agreed_among",
    "agreed_beside",
    "caller_level",
    "checked_count",
    "checked_flag",
    "checked_number",
    "difference_of",
    "digest_of",
    "lines_of_values",
    "name_of",
    "words_of",
    "workers_of",
]
