"""Rules of buffers: by hand, bits of identical workers, and rules that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Buffers,
    Communicator,
    Derived,
    MismatchError,
    Variance,
    WeightedMean,
    run_threads,
    solo,
)
from workers import assert_named_by_all, outcomes


def joined(comm: Communicator, buffers: Buffers, weight: float | None = None) -> dict[str, Any]:
    """The values after a round."""
    buffers.ready(comm, weight)
    buffers.join(comm, weight)
    return {name: view.tolist() for name, view in buffers.items()}


def test_extremes_of_floats_booleans_and_integers() -> None:
    """Whatever a worker weighs: an observer that has seen nothing has an infinite range."""

    def work(comm: Communicator) -> dict[str, Any]:
        rank = comm.rank
        values = {
            "low": np.array([np.inf, -1.5, 2.0][rank]),
            "high": np.array([-np.inf, -1.0, 7.0][rank]),
            "any": np.array([rank == 1, False]),
            "all": np.array([rank == 1, True]),
            "least": np.array([5 - rank], np.int32),
        }
        rules: Any = {"low": "min", "high": "max", "any": "max", "all": "min", "least": "min"}
        return joined(comm, Buffers(values, rules, comm, start="keep"), float(rank))

    expected = {"low": -1.5, "high": 7.0, "any": [True, False], "all": [False, True], "least": [3]}
    assert run_threads(3, work, hosts="2+1") == [expected] * 3


def test_complex_numbers_have_a_mean() -> None:
    def work(comm: Communicator) -> dict[str, Any]:
        values = {"z": np.array([1 + 2j, 3j], np.complex64) * comm.rank}
        return joined(comm, Buffers(values, comm=comm, start="keep"))

    assert run_threads(3, work) == [{"z": [1 + 2j, 3j]}] * 3


def test_means_are_weighed_by_the_numbers_behind_them() -> None:
    """Codes seen by two workers: 1 and 3 times, and never by anybody; each of two dimensions.

    (1·2 + 3·6) / 4 = 5 for the first code, the plain mean (2 + 6) / 2 = 4 for the second.
    """

    def work(comm: Communicator) -> dict[str, Any]:
        first = comm.rank == 0
        codes = np.full((2, 2), 2.0 if first else 6.0)
        values = {
            "counts": np.array([1.0 if first else 3.0, 0.0]),
            "codes": codes,
            "columns": codes.T.reshape(2, 2) + 0.0,
        }
        rules = {"codes": WeightedMean("counts"), "columns": WeightedMean("counts")}
        return joined(comm, Buffers(values, rules, comm, start="keep"))

    rows = [[5.0, 5.0], [4.0, 4.0]]
    expected = {"counts": [2.0, 0.0], "codes": rows, "columns": rows}
    assert run_threads(2, work) == [expected] * 2


def test_numbers_may_stand_for_the_last_dimension() -> None:
    """One worker has seen the second column alone: shape (3, 2) by counts of shape (2,)."""

    def work(comm: Communicator) -> dict[str, Any]:
        values = {
            "counts": np.array([1.0, float(comm.rank)]),
            "codes": np.full((3, 2), 4.0 * comm.rank),
        }
        rules = {"codes": WeightedMean("counts")}
        return joined(comm, Buffers(values, rules, comm, start="keep"))

    assert run_threads(2, work)[1]["codes"] == [[2.0, 4.0]] * 3


def test_workers_weigh_by_samples_as_well() -> None:
    """Weights 3 and 1, counts 1 and 2: (3·1·1 + 1·2·6) / (3·1 + 1·2) = 3."""

    def work(comm: Communicator) -> float:
        values = {
            "counts": np.array([1.0 + comm.rank]),
            "codes": np.array([[1.0, 6.0][comm.rank]]),
        }
        rules = {"codes": WeightedMean("counts")}
        found = joined(comm, Buffers(values, rules, comm, start="keep"), [3.0, 1.0][comm.rank])
        return float(found["codes"][0])

    assert run_threads(2, work) == [pytest.approx(3.0, rel=1e-15)] * 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("size", "hosts"), [(3, "2+1"), (6, "3+2+1"), (7, "7")])
def test_weighted_means_of_identical_workers_keep_their_bits(
    size: int, hosts: str, dtype: Any
) -> None:
    random = np.random.default_rng(0)
    values = {
        "counts": random.exponential(size=50).astype(dtype),
        "codes": random.normal(size=(50, 4)).astype(dtype),
    }

    def work(comm: Communicator) -> bool:
        buffers = Buffers(values, {"codes": WeightedMean("counts")}, comm)
        buffers.join(comm, comm.rank + 1.0)
        return all(buffers[name].tobytes() == array.tobytes() for name, array in values.items())

    assert all(run_threads(size, work, hosts=hosts))


def direction(buffers: Mapping[str, np.ndarray]) -> np.ndarray:
    return buffers["sum"] / np.linalg.norm(buffers["sum"])


def test_what_follows_from_the_rest_is_computed_after_it_in_order() -> None:
    """Sums (6, 0) and (0, 8): mean (3, 4) of length 5, whose direction is (0.6, 0.8)."""

    def work(comm: Communicator) -> dict[str, Any]:
        values = {
            "unit": np.array([1.0, 0.0]),
            "twice": np.zeros(2),
            "sum": np.array([6.0, 0.0] if comm.rank == 0 else [0.0, 8.0]),
        }
        rules = {"unit": Derived(direction), "twice": Derived(lambda b: 2 * b["unit"])}
        return joined(comm, Buffers(values, rules, comm, start="keep"))

    expected = {"unit": [0.6, 0.8], "twice": [1.2, 1.6], "sum": [3.0, 4.0]}
    assert run_threads(2, work) == [expected] * 2


def test_an_error_in_what_computes_is_told_on_every_rank() -> None:
    def fail(buffers: Mapping[str, np.ndarray]) -> np.ndarray:
        raise ArithmeticError("no direction")

    def work(comm: Communicator) -> None:
        Buffers({"unit": np.zeros(2)}, {"unit": Derived(fail)}, comm).join(comm, None)

    found = outcomes(3, work)
    assert isinstance(found[0], ArithmeticError)
    for outcome in found[1:]:
        assert isinstance(outcome, MismatchError)
        assert "derived buffers" in str(outcome) and "no direction" in str(outcome)


def test_what_must_be_equal_is_compared_before_a_round() -> None:
    def work(comm: Communicator) -> None:
        mask = np.array([True, False, comm.rank == 2])
        buffers = Buffers({"mask": mask, "scale": np.ones(1)}, comm=comm, start="keep")
        with pytest.raises(MismatchError, match=r"'mask' .* on ranks 0, 1; .* on rank 2; "):
            buffers.ready(comm, None)
        buffers["mask"] = np.array([True, False, False])
        buffers.ready(comm, None)

    run_threads(3, work)


def test_a_pattern_names_several_and_a_name_comes_first() -> None:
    values = {name: np.zeros(2) for name in ("a.angles", "b.angles", "b.scale")}
    for rules in ({"*.angles": "equal", "b.angles": "keep"}, {"b.angles": "keep", "*s": "equal"}):
        found = Buffers(values, rules, solo()).rules
        assert found == {"a.angles": "equal", "b.angles": "keep", "b.scale": "mean"}


VALID = {"mean": np.zeros(3), "var": np.ones(3), "count": np.array(0), "mask": np.array([True])}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"other": "mean"},
            r"of buffers that there are, \['mean', .*'mask'\], got 'other'",
        ),
        ({"x*": "mean"}, r"must be of buffers that there are, .* got 'x\*'"),
        ({"m*": "keep", "*n": "mean"}, r"one rule, got for 'mean' 'm\*': keep and '\*n': mean"),
        (
            {"count": "mean"},
            "rule mean must have .* got 'count' of int64, for which .*'max'",
        ),
        ({"mask": "mean"}, "rule mean must have .* floats, got 'mask' of bool"),
        ({"count": Variance("mean")}, "floats, got 'count' of int64"),
        ({"mask": WeightedMean("mean")}, "floats, got 'mask' of bool"),
        ({"var": WeightedMean("count")}, "'var' must name a buffer of floats .* got 'max'"),
        ({"var": WeightedMean("none")}, "got 'no such buffer'; there are .*'count'"),
        ({"var": "middle"}, "must be 'mean', 'max', 'min', 'equal', 'keep', a Variance"),
    ],
)
def test_wrong_rules_are_an_error_on_every_rank_that_lists_the_names(
    rules: Any, message: str
) -> None:
    def work(comm: Communicator) -> None:
        Buffers(VALID, rules if comm.rank == 1 else None, comm)

    assert_named_by_all(outcomes(2, work), ValueError, message, "buffers")


def test_numbers_of_another_shape_are_refused() -> None:
    values = {"counts": np.zeros(3), "codes": np.zeros((2, 4))}
    with pytest.raises(ValueError, match=r"begins or ends \(2, 4\), got \(3,\)"):
        Buffers(values, {"codes": WeightedMean("counts")}, solo())
