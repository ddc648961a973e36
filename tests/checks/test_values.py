"""Warnings go to whoever called in from outside."""

from __future__ import annotations

import warnings

from localsgd import PeriodicModelAverager, solo


def test_a_warning_names_the_file_of_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PeriodicModelAverager(1, comm=solo())
    assert [warning.filename for warning in caught] == [__file__]
