"""Buffers: each rule in closed form, bits of identical workers, bad input, and saving."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import (
    Arena,
    Buffers,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    PostLocalSGDOptimizer,
    Variance,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, assert_named_by_all, gradient, initial_values, outcomes


def normalisation(dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """What a batch normalisation of three channels keeps."""
    return {
        "mean": np.zeros(3, dtype),
        "var": np.ones(3, dtype),
        "batches": np.array(0),
        "own": np.zeros(2, dtype),
    }


def made(comm: Communicator, dtype: Any = np.float64) -> Buffers:
    return Buffers(normalisation(dtype), {"var": Variance("mean"), "own": "keep"}, comm)


def begin(comm: Communicator, period: int = 1) -> tuple[LocalSGD, Arena, Buffers]:
    arena, buffers = Arena(initial_values(), comm), made(comm)
    return LocalSGD(optim.SGD(arena, lr=0.1), period, buffers=buffers), arena, buffers


def data(rank: int) -> np.ndarray:
    """A worker's own samples, of another size and distribution each, shape (n, 3)."""
    rng = np.random.default_rng(rank)
    return rng.normal(loc=[rank, -rank, 10.0], scale=1 + rank, size=(5 + 7 * rank, 3))


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_pooled_statistics_are_those_of_all_samples_together(size: int, hosts: str) -> None:
    """Means and variances of all workers' samples, weighed by their number; the largest counter."""

    def work(comm: Communicator) -> dict[str, np.ndarray]:
        training, _, buffers = begin(comm)
        samples, views = data(comm.rank), dict(buffers)
        views["mean"][...] = samples.mean(axis=0)
        views["var"][...] = samples.var(axis=0)
        views["batches"][...] = 3 + comm.rank
        views["own"][...] = comm.rank
        training.record_samples(len(samples))
        training.step()
        assert all(np.shares_memory(view, buffers[name]) for name, view in views.items())
        assert buffers["own"].tolist() == [comm.rank] * 2
        return buffers.state_dict()

    everything = np.concatenate([data(rank) for rank in range(size)])
    results = run_threads(size, work, hosts=hosts)
    for found in results:
        np.testing.assert_allclose(found["mean"], everything.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found["var"], everything.var(axis=0), rtol=1e-12)
        assert found["batches"] == 2 + size
    for name in ("mean", "var"):
        assert len({found[name].tobytes() for found in results}) == 1


def test_the_variance_between_equal_weights_by_hand() -> None:
    """Means -1 and 3, variances 1 and 2: mean 1, variance 3/2 + 4."""

    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        training, _, buffers = begin(comm)
        buffers["mean"] = np.full(3, [-1.0, 3.0][comm.rank])
        buffers["var"] = np.full(3, [1.0, 2.0][comm.rank])
        training.flush()
        return buffers["mean"].tolist(), buffers["var"].tolist()

    assert run_threads(2, work) == [([1.0] * 3, [5.5] * 3)] * 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize(("size", "hosts"), [(3, "2+1"), (6, "3+2+1"), (7, "7")])
def test_identical_workers_keep_their_bits(size: int, hosts: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = {
        "mean": rng.normal(size=300).astype(dtype),
        "var": rng.exponential(size=300).astype(dtype),
        "count": np.array([7, -3], np.int32),
    }

    def work(comm: Communicator) -> bool:
        buffers = Buffers(values, {"var": Variance("mean")}, comm)
        buffers.join(comm, None)
        buffers.join(comm, comm.rank + 1.0)
        return all(buffers[name].tobytes() == values[name].tobytes() for name in values)

    assert all(run_threads(size, work, hosts=hosts))


def test_a_worker_of_weight_0_takes_floats_and_gives_nothing() -> None:
    def work(comm: Communicator) -> tuple[list[float], list[float], int]:
        training, _, buffers = begin(comm)
        buffers["mean"] = np.full(3, np.nan if comm.rank == 0 else 2.0)
        buffers["var"] = np.full(3, np.inf if comm.rank == 0 else 3.0)
        buffers["batches"] = np.array(5 - comm.rank)
        training.record_samples(comm.rank)
        training.flush()
        return buffers["mean"].tolist(), buffers["var"].tolist(), int(buffers["batches"])

    assert run_threads(3, work, hosts="2+1") == [([2.0] * 3, [3.0] * 3, 5)] * 3


def test_rounds_of_hosts_pool_among_hosts_alone() -> None:
    """Rank r has mean r: hosts {0, 1} and {2} in the round of hosts, all in the last one."""

    def work(comm: Communicator) -> list[tuple[float, float]]:
        arena, buffers = Arena(initial_values(), comm), made(comm)
        averager = HierarchicalModelAverager({2: "host", 4: "world"}, comm=comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager, buffers=buffers)
        seen = []
        for step in range(1, 6):
            if step in (3, 5):
                buffers["mean"] = np.full(3, float(comm.rank))
                buffers["var"] = np.full(3, 1.0)
            training.step()
            seen.append((float(buffers["mean"][0]), float(buffers["var"][0])))
        return [seen[2], seen[4]]

    first, second, third = run_threads(3, work, hosts="2+1")
    assert first == second
    np.testing.assert_allclose(first, [(0.5, 1.25), (1.0, 1 + 2 / 3)], rtol=1e-15)
    np.testing.assert_allclose(third, [(2.0, 1.0), (1.0, 1 + 2 / 3)], rtol=1e-15)


def test_defaults_are_the_mean_of_floats_and_the_largest_integer() -> None:
    values = {"f": np.zeros(2, np.float16), "i": np.zeros(2, np.uint8)}
    buffers = Buffers(values, comm=solo())
    assert buffers.rules == {"f": "mean", "i": "max"}
    assert repr(buffers) == "Buffers(f[2]: mean, i[2]: max)"


def test_buffers_that_are_not_finite_are_kept_unless_told_otherwise() -> None:
    """A mask of -inf has no mean but NaN; in every float that there is."""
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        values = {name: np.array([0.0, -np.inf], dtype) for name in ("mask", "told")}
        values["finite"] = np.zeros(2, dtype)
        rules = Buffers(values, {"told": "mean"}, solo()).rules
        assert rules == {"mask": "keep", "told": "mean", "finite": "mean"}

    def work(comm: Communicator) -> None:
        value = np.array([-np.inf if comm.rank else 0.0])
        with pytest.raises(MismatchError, match="rule mean on rank 0; .* rule keep on rank 1"):
            Buffers({"mask": value}, comm=comm)

    run_threads(2, work)


def test_all_workers_start_from_rank_0_whatever_the_rule() -> None:
    values = {
        "a": np.array([1.5]),
        "own": np.array([2.5]),
        "mask": np.array([True, False]),
        "phase": np.array([1j]),
        "seen": np.array(3, np.uint8),
    }

    def work(comm: Communicator) -> list[list[Any]]:
        mine = {name: np.full_like(array, comm.rank) for name, array in values.items()}
        given = values if comm.rank == 0 else mine
        begun = Buffers(given, {"own": "keep"}, comm)
        kept = Buffers(given, {"own": "keep"}, comm, start="keep")
        return [[array.tolist() for array in buffers.values()] for buffers in (begun, kept)]

    first = [array.tolist() for array in values.values()]
    begun, kept = zip(*run_threads(3, work, hosts="2+1"), strict=True)
    assert begun == (first,) * 3
    assert kept[0] == first and kept[2] == [[2.0], [2.0], [True, True], [2.0], 2]


VALID = {"mean": np.zeros(3), "var": np.ones(3), "count": np.array(0)}


@pytest.mark.parametrize(
    ("values", "rules", "error", "message"),
    [
        (
            {"day": np.array(0, "datetime64[D]")},
            {},
            TypeError,
            "buffer 'day' must be of floats, integers, booleans or complex numbers, got datetime",
        ),
        (VALID, {"var": "sum"}, ValueError, "the rule of buffer 'var' must be .* got 'sum'"),
        (VALID, {"var": Variance("nix")}, ValueError, "'var' must name .* got 'no such buffer'"),
        (VALID, {"var": Variance("count")}, ValueError, "'var' must name .* got 'max'; there are"),
        (
            {"mean": np.zeros(2), "var": np.ones(3)},
            {"var": Variance("mean")},
            ValueError,
            r"'var' must name one of shape \(3,\), got \(2,\)",
        ),
        ({"x": [1.0]}, {}, TypeError, "must be numpy arrays by name, got 'x'"),
    ],
)
def test_bad_buffers_are_an_error_on_every_rank(
    values: Any, rules: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        Buffers(values if comm.rank == 1 else VALID, rules if comm.rank == 1 else None, comm)

    assert_named_by_all(outcomes(2, work), error, message, "buffers")


def test_names_shapes_and_rules_must_agree() -> None:
    def work(comm: Communicator) -> None:
        Buffers(VALID, {"var": Variance("mean")} if comm.rank else {}, comm)

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert (
            "got buffer 'var' float64[3], rule mean on rank 0; "
            "buffer 'var' float64[3], rule Variance(mean='mean') on rank 1" in str(outcome)
        )


def test_buffers_are_in_the_state_dict_and_loaded_in_place() -> None:
    training, _, buffers = begin(solo())
    buffers["var"] = np.arange(3.0)
    saved = training.state_dict()
    assert list(saved["buffers"]) == ["mean", "var", "batches", "own"]
    view = buffers["var"]
    buffers["var"] = np.zeros(3)
    training.load_state_dict(saved)
    assert view.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"var": np.ones(2)}, ValueError, r"buffer 'var' must have shape \(3,\), got \(2,\)"),
        ({"batches": np.array(1.5)}, TypeError, "'batches' must be given integers, got float64"),
        ({"new": np.ones(2)}, ValueError, "saved buffers must be .* got .*'new'"),
        (None, ValueError, "state_dict must have 'buffers'"),
        ("nothing", TypeError, "state_dict must be a mapping, got None"),
    ],
)
def test_a_failing_load_changes_nothing_on_any_rank(
    change: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        training, arena, _ = begin(comm, period=4)
        arena.grad.flat[...] = 1.0
        training.step()
        saved: Any = training.state_dict()
        before = training.state_dict()
        saved["step"] = 3
        saved["param_groups"][0]["lr"] = 9.0
        saved["buffers"]["mean"] = np.full(3, 5.0)
        if comm.rank == 1 and change is None:
            del saved["buffers"]
        elif comm.rank == 1 and change == "nothing":
            saved = None
        elif comm.rank == 1:
            saved["buffers"].update(change)
        with pytest.raises(error if comm.rank == 1 else MismatchError, match=message):
            training.load_state_dict(saved)
        np.testing.assert_equal(training.state_dict(), before)

    run_threads(3, work, hosts="2+1")


def test_loads_at_different_steps_are_an_error_on_every_rank_and_change_nothing() -> None:
    def work(comm: Communicator) -> None:
        training, _, _ = begin(comm, period=4)
        for _ in range(1 + comm.rank):
            training.step()
        before = training.state_dict()
        with pytest.raises(MismatchError, match="got step 1 on rank 0; step 2 on rank 1"):
            training.load_state_dict(training.state_dict())
        np.testing.assert_equal(training.state_dict(), before)

    run_threads(2, work)


@pytest.mark.parametrize("saved_at", [2, 3, 4])
def test_resuming_equals_never_stopping_to_the_bit(saved_at: int) -> None:
    def train(training: LocalSGD, arena: Arena, buffers: Buffers, steps: range) -> bytes:
        for step in steps:
            rank = arena.comm.rank
            arena.grad.flat[...] = gradient(rank, step, arena.flat)
            buffers["mean"] += 0.1 * (gradient(rank, step, buffers["mean"]) - buffers["mean"])
            buffers["var"] += 0.1 * (gradient(rank, step, buffers["var"]) ** 2 - buffers["var"])
            buffers["batches"] += rank + 1
            training.step()
        return b"".join(array.tobytes() for array in (arena.flat, *buffers.values()))

    def work(comm: Communicator) -> bool:
        whole = train(*begin(comm, 3), range(1, 9))
        half = begin(comm, 3)
        train(*half, range(1, saved_at + 1))
        saved, values = half[0].state_dict(), {name: a.copy() for name, a in half[1].items()}
        resumed = begin(comm, 3)
        resumed[0].load_state_dict(saved)
        for name, array in values.items():
            resumed[1][name] = array
        return train(*resumed, range(saved_at + 1, 9)) == whole

    assert run_threads(3, work, hosts="2+1") == [True] * 3
