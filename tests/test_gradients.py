"""The gradient stage: post-local SGD by hand, skipped steps, clipping, and its errors."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    every,
    lr,
    optim,
    run_threads,
    solo,
    when,
)
from workers import LAYOUTS, assert_named_by_all, gradient, initial_values, outcomes, reference

STEPS, WARMUP = 12, 4
After = Literal["host", "none"]
Wrap = Callable[[optim.Optimizer, Communicator, GradientStage], PostLocalSGDOptimizer]
Groups = Sequence[Sequence[int]]


def hosts_of(size: int, hosts: str) -> Groups:
    return run_threads(size, lambda comm: comm.topology.hosts, hosts=hosts)[0]


def history(
    size: int,
    hosts: str,
    after: After,
    wrap: Wrap,
    skips: Callable[[int], Sequence[int]] = lambda step: (),
) -> np.ndarray:
    """After every step the parameters of all workers, shape (steps, size, n)."""

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        inner = optim.SGD(arena, lr=0.1, momentum=0.9)
        training = wrap(inner, comm, GradientStage(after, comm))
        view, seen = arena.grad["w"], []
        for step in range(1, STEPS + 1):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            if comm.rank in skips(step):
                arena.grad.flat[...] = np.nan
                training.skip_step()
            else:
                training.step()
            assert not arena.grad.flat.any()
            seen.append(arena.flat.copy())
        assert np.shares_memory(view, arena.grad.flat)
        return np.array(seen)

    return np.stack(run_threads(size, work, hosts=hosts), axis=1)


def assert_follows(seen: np.ndarray, expected: Sequence[np.ndarray]) -> None:
    """Equal after every step, and to the bit on all workers while gradients are averaged."""
    for step, (values, wanted) in enumerate(zip(seen, expected, strict=True), start=1):
        np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-14, err_msg=f"step {step}")
        if step <= WARMUP:
            assert len({row.tobytes() for row in values}) == 1, f"step {step}"


def stage_groups(after: After, everyone: Groups, hosts: Groups) -> Callable[[int], Groups]:
    return lambda step: everyone if step <= WARMUP else hosts if after == "host" else []


@pytest.mark.parametrize("after", ["none", "host"])
@pytest.mark.parametrize("period", [1, 3, 4])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_post_local_sgd_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str, period: int, after: After
) -> None:
    """Four steps by the mean gradient, then local steps and a round after every period."""
    everyone = [range(size)]
    expected = reference(
        size,
        STEPS,
        lambda step: everyone if step > WARMUP and (step - WARMUP) % period == 0 else [],
        lr=0.1,
        momentum=0.9,
        gradient_groups=stage_groups(after, everyone, hosts_of(size, hosts)),
    )
    seen = history(
        size,
        hosts,
        after,
        lambda inner, comm, stage: LocalSGD(
            inner, period, synchronous_steps=WARMUP, gradients=stage
        ),
    )
    assert_follows(seen, expected)


@pytest.mark.filterwarnings("ignore:period 1")
@pytest.mark.parametrize("after", ["none", "host"])
@pytest.mark.parametrize("period", [1, 3, 4])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_pytorchs_phase_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str, period: int, after: After
) -> None:
    everyone = [range(size)]
    expected = reference(
        size,
        STEPS,
        lambda step: everyone if step in range(WARMUP + 1, STEPS + 1, period) else [],
        lr=0.1,
        momentum=0.9,
        gradient_groups=stage_groups(after, everyone, hosts_of(size, hosts)),
    )
    seen = history(
        size,
        hosts,
        after,
        lambda inner, comm, stage: PostLocalSGDOptimizer(
            inner, PeriodicModelAverager(period, WARMUP, comm), gradients=stage
        ),
    )
    assert_follows(seen, expected)


@pytest.mark.filterwarnings("ignore:period 1")
@pytest.mark.parametrize("after", ["none", "host"])
@pytest.mark.parametrize("period", [1, 3, 4])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_hierarchical_post_local_sgd_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str, period: int, after: After
) -> None:
    everyone, of_hosts = [range(size)], hosts_of(size, hosts)

    def groups_after(step: int) -> Groups:
        if step <= WARMUP or (step - 1) % period:
            return []
        return of_hosts if (step - 1) % (2 * period) else everyone

    expected = reference(
        size,
        STEPS,
        groups_after,
        lr=0.1,
        momentum=0.9,
        gradient_groups=stage_groups(after, everyone, of_hosts),
    )
    seen = history(
        size,
        hosts,
        after,
        lambda inner, comm, stage: PostLocalSGDOptimizer(
            inner,
            HierarchicalModelAverager({period: "host", 2 * period: "world"}, WARMUP, comm),
            gradients=stage,
        ),
    )
    assert_follows(seen, expected)


@pytest.mark.parametrize("after", ["none", "host"])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_skipped_steps_equal_the_written_out_reference_after_every_step(
    size: int, hosts: str, after: After
) -> None:
    """One rank skips in turn, and in steps 2 and 9 all do: skipped gradients are NaN here."""
    everyone = [range(size)]

    def skips(step: int) -> Sequence[int]:
        return range(size) if step in (2, 9) else [step % size] if step % 3 else []

    expected = reference(
        size,
        STEPS,
        lambda step: everyone if step > WARMUP and (step - WARMUP) % 3 == 0 else [],
        lr=0.1,
        momentum=0.9,
        gradient_groups=stage_groups(after, everyone, hosts_of(size, hosts)),
        skips=skips,
    )
    seen = history(
        size,
        hosts,
        after,
        lambda inner, comm, stage: LocalSGD(inner, 3, synchronous_steps=WARMUP, gradients=stage),
        skips,
    )
    assert_follows(seen, expected)


@pytest.mark.parametrize("staged", [False, True])
def test_a_skipped_local_step_is_counted_and_its_samples_are_forgotten(staged: bool) -> None:
    """Rank 1 saw 1 sample in the step that it took, rank 0 saw 3: (3·(-1) + 1·(-2)) / 4."""

    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        stage = GradientStage("none", comm) if staged else None
        training = LocalSGD(optim.SGD(arena, lr=1.0), 2, gradients=stage)
        for step in range(2):
            training.record_samples([1, 2][step] if comm.rank == 0 else [1, 99][step])
            arena.grad["x"] += [0.5, 2.0][comm.rank]
            if step == 1 and comm.rank == 1:
                arena.grad["x"] += np.inf
                training.skip_step()
            else:
                training.step()
        return float(arena["x"][0]), training.averager.step

    assert run_threads(2, work) == [(-1.25, 2)] * 2


@pytest.mark.parametrize("uneven", [False, True])
def test_a_worker_that_skips_all_its_steps_weighs_nothing_in_the_round(uneven: bool) -> None:
    """Averaged after every step; all record. Rank 1 skips step 2, both skip step 3.

    (-1·3 - 2·1)/4 = -1¼; then rank 0 alone: -2¼, where both stay in step 3.
    """

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 1)
        seen = []
        with training.uneven() if uneven else nullcontext():
            for step in range(1, 4):
                training.record_samples(1 if comm.rank else 3)
                arena.grad["x"] += comm.rank + 1.0
                training.skip_step() if step + comm.rank >= 3 else training.step()
                seen.append(float(arena["x"][0]))
        return seen

    assert run_threads(2, work) == [[-1.25, -2.25, -2.25]] * 2


def test_where_all_skip_a_resumed_round_and_a_mean_are_no_errors_either() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.full(1, 5.0)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 2)
        training.record_samples(1)
        training.skip_step()
        resumed = LocalSGD(optim.SGD(arena, lr=1.0), 2)
        resumed.load_state_dict(training.state_dict())
        seen = resumed.mean()["x"].tolist()
        resumed.record_samples(0)
        resumed.step()
        return seen + arena["x"].tolist()

    assert run_threads(2, work) == [[5.0, 5.0]] * 2


def test_gradients_weigh_by_the_samples_of_the_step() -> None:
    """Gradients 1, 2, 3 of 1, 2, 3 samples: 14/6 in step 1; in step 2 all weigh the same: 2."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        stage = GradientStage("none", comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 9, synchronous_steps=2, gradients=stage)
        seen = []
        for step in range(2):
            if step == 0:
                training.record_samples(comm.rank + 1)
            arena.grad["x"] += comm.rank + 1.0
            training.step()
            seen.append(float(arena["x"][0]))
        return seen

    for seen in run_threads(3, work, hosts="2+1"):
        np.testing.assert_allclose(seen, [-14 / 6, -14 / 6 - 2], rtol=1e-15)


def test_samples_of_the_warmup_weigh_in_no_round() -> None:
    """In the warm-up rank 1 saw 100 samples; after it 1 like rank 0, so the mean is plain."""

    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm)
        stage = GradientStage("none", comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 1, synchronous_steps=1, gradients=stage)
        training.record_samples(100 if comm.rank else 1)
        training.step()
        training.record_samples(1)
        arena.grad["x"] += 2.0 * comm.rank
        training.step()
        return float(arena["x"][0])

    assert run_threads(2, work) == [-1.0, -1.0]


def test_the_mean_of_micro_batches_is_stepped_with() -> None:
    """Ranks add up 1+2+3 and 4+5+6: means 2 and 5, together 3½; alone -2 and -5 more."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1), "n": np.zeros(2)}, comm)
        half = Arena({"h": np.zeros(1, ml_dtypes.bfloat16)}, comm)
        stage = GradientStage("none", comm)
        inner = optim.SGD([arena, half], lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=1, gradients=stage)
        seen = []
        for _ in range(2):
            for micro in range(3):
                arena.grad["x"] += 3 * comm.rank + micro + 1.0
                half.grad["h"] += np.full(1, micro + 1).astype(half.dtype)
            training.step(micro_batches=3)
            seen.append(float(arena["x"][0]))
        assert half["h"].astype(float).tolist() == [-4.0]
        return seen

    assert run_threads(2, work) == [[-3.5, -5.5], [-3.5, -8.5]]


def test_micro_batches_need_no_stage() -> None:
    arena = Arena({"x": np.zeros(1)}, solo())
    training = LocalSGD(optim.SGD(arena, lr=1.0), 9)

    def closure() -> float:
        arena.grad["x"] += 8.0
        return 0.25

    assert training.step(closure, micro_batches=4) == 0.25
    assert arena["x"].tolist() == [-2.0]
    with pytest.raises(ValueError, match="micro_batches must be at least 1, got 0"):
        training.step(micro_batches=0)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_the_norm_of_the_mean_is_over_all_arenas_and_equal_to_the_bit(
    size: int, hosts: str
) -> None:
    """Means 3 (wide, 50,000 times) and 4 (half, 50,000 times): norm √(50,000·25), limited to 1."""
    count = 50_000

    def work(comm: Communicator) -> tuple[float, bytes, bytes]:
        wide = Arena({"w": np.zeros(count, np.float32)}, comm)
        half = Arena({"h": np.zeros(count, np.float16)}, comm)
        stage = GradientStage("none", comm, max_norm=1.0)
        inner = optim.SGD([wide, half], lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=1, gradients=stage)
        wide.grad.flat[...] = 3 * (comm.rank + 1) * 2 / (size + 1)
        half.grad.flat[...] = 4
        training.step()
        return stage.norm, wide.flat.tobytes(), half.flat.tobytes()

    results = run_threads(size, work, hosts=hosts)
    assert len(set(results)) == 1
    norm, wide, half = results[0]
    # The mean of float32 is rounded once a level.
    np.testing.assert_allclose(norm, 5 * np.sqrt(count), rtol=3e-7)
    np.testing.assert_allclose(np.frombuffer(wide, np.float32), -3 / norm, rtol=1e-6)
    # Divided in float32, then rounded to the eleven bits of float16.
    np.testing.assert_allclose(np.frombuffer(half, np.float16), -4 / norm, rtol=2**-11)


def test_own_gradients_are_clipped_before_they_are_averaged() -> None:
    """(3, 4) and (0, 2), to norm at most 1: (.6, .8) and (0, 1), mean (.3, .9); then to 3/10."""

    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        arena = Arena({"x": np.zeros(2)}, comm)
        stage = GradientStage("none", comm, max_own_norm=1.0, max_norm=0.3)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 9, synchronous_steps=1, gradients=stage)
        arena.grad["x"] += [[3.0, 4.0], [0.0, 2.0]][comm.rank]
        training.step()
        return [stage.own_norm, stage.norm], arena["x"].tolist()

    for rank, (norms, values) in enumerate(run_threads(2, work)):
        np.testing.assert_allclose(norms, [[5.0, 2.0][rank], np.sqrt(0.9)], rtol=1e-15)
        np.testing.assert_allclose(values, np.array([-0.3, -0.9]) * 0.3 / np.sqrt(0.9), rtol=1e-14)


def test_gradients_that_are_stepped_with_alone_are_clipped_too() -> None:
    comm = solo()
    arena, stage = Arena({"x": np.zeros(2)}, comm), GradientStage("none", comm, max_norm=2.5)
    training = LocalSGD(optim.SGD(arena, lr=1.0), 9, gradients=stage)
    for scale in (1.0, 0.25):
        arena.grad["x"] += np.array([3.0, 4.0]) * scale
        training.step()
        assert stage.norm == 5.0 * scale
    assert arena["x"].tolist() == [-1.5 - 0.75, -2.0 - 1.0]


def test_clipping_leaves_shorter_gradients_to_the_bit() -> None:
    def train(comm: Communicator, **limits: float) -> bytes:
        arena = Arena(initial_values(), comm)
        stage = GradientStage("host", comm, **limits)
        training = LocalSGD(optim.SGD(arena, lr=0.1), 3, synchronous_steps=2, gradients=stage)
        for step in range(1, 7):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
        return arena.flat.tobytes()

    def work(comm: Communicator) -> bool:
        return train(comm) == train(comm, max_own_norm=1e6, max_norm=1e6)

    assert run_threads(3, work, hosts="2+1") == [True] * 3


def test_a_gradient_that_is_not_finite_reaches_all_and_is_not_clipped() -> None:
    def work(comm: Communicator) -> tuple[list[float], float]:
        arena = Arena({"x": np.zeros(2)}, comm)
        stage = GradientStage("none", comm, max_own_norm=1.0, max_norm=1.0)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 9, synchronous_steps=1, gradients=stage)
        arena.grad["x"] += [np.nan, 8.0] if comm.rank else [0.0, 0.5]
        training.step()
        return arena["x"].tolist(), stage.norm

    for values, norm in run_threads(2, work):
        np.testing.assert_equal(values, [np.nan, -4.25])
        assert np.isnan(norm)


def test_averaging_and_clipping_need_no_memory_of_the_models_size() -> None:
    """16 MiB of gradients, and at most 4 MiB more for blocks and messages.

    A first step loads the compiler, where there is one, once for the process.
    """
    comm = solo()
    arenas = [
        Arena({"w": np.zeros(3 << 20, np.float32)}, comm),
        Arena({"h": np.zeros(2 << 20, np.float16)}, comm),
    ]
    stage = GradientStage("none", comm, max_own_norm=1.0, max_norm=0.5)
    training = LocalSGD(optim.SGD(arenas, lr=0.1), 9, synchronous_steps=9, gradients=stage)
    training.step()
    for arena in arenas:
        arena.grad.flat[...] = 1.0
    tracemalloc.start()
    try:
        training.step(micro_batches=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    np.testing.assert_allclose(stage.norm, 1.0, rtol=1e-3)


def test_after_the_warmup_nothing_is_sent_for_gradients() -> None:
    def work(comm: Communicator) -> list[int]:
        arena = Arena(initial_values(), comm)
        stage = GradientStage("none", comm)
        training = LocalSGD(optim.SGD(arena, lr=0.1), 99, synchronous_steps=2, gradients=stage)
        seen = []
        for _ in range(4):
            calls = comm.traffic.calls
            training.step()
            seen.append(comm.traffic.calls - calls)
        return seen

    assert run_threads(2, work) == [[1, 1, 0, 0]] * 2


def test_the_warmup_is_the_schedules_whatever_the_averager() -> None:
    def work(comm: Communicator) -> list[bool]:
        arena = Arena(initial_values(), comm)
        averager = ModelAverager(when(lambda step: False, warmup_steps=2), comm)
        training = PostLocalSGDOptimizer(
            optim.SGD(arena, lr=0.1), averager, gradients=GradientStage("none", comm)
        )
        equal = []
        for step in range(1, 4):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
            equal.append(len({values.tobytes() for values in comm.gather(arena.flat)}) == 1)
        return equal

    assert run_threads(2, work) == [[True, True, False]] * 2


@pytest.mark.parametrize("saved_at", [2, 4, 6])
def test_resuming_equals_never_stopping_to_the_bit(saved_at: int) -> None:
    """In the warm-up, at its end, and in mid-period; with a learning rate of the wrapper's."""

    def build(comm: Communicator) -> tuple[LocalSGD, Arena]:
        arena = Arena(initial_values(), comm)
        inner = optim.SGD(arena, lr=0.1, momentum=0.9)
        stage = GradientStage("host", comm, max_norm=1.0)
        training = LocalSGD(
            inner, 3, synchronous_steps=WARMUP, gradients=stage, rate=lr.cosine(STEPS)
        )
        return training, arena

    def train(training: LocalSGD, arena: Arena, steps: range) -> bytes:
        for step in steps:
            training.record_samples(1 + (arena.comm.rank + step) % 3)
            arena.grad.flat[...] = gradient(arena.comm.rank, step, arena.flat)
            training.step()
        return arena.flat.tobytes()

    def work(comm: Communicator) -> bool:
        whole = train(*build(comm), range(1, STEPS))
        half, arena = build(comm)
        train(half, arena, range(1, saved_at + 1))
        saved, values = half.state_dict(), {name: array.copy() for name, array in arena.items()}
        resumed, arena = build(comm)
        resumed.load_state_dict(saved)
        for name, array in values.items():
            arena[name] = array
        return train(resumed, arena, range(saved_at + 1, STEPS)) == whole

    assert run_threads(3, work, hosts="2+1") == [True] * 3


def test_the_rate_of_the_wrapper_is_set_before_every_step_and_may_be_replaced() -> None:
    """Rates 1, ½, ¼ of gradient 1; then a rate of 10 takes over, also after a load."""
    arena = Arena({"x": np.zeros(1)}, solo())
    training = LocalSGD(optim.SGD(arena, lr=1.0), 9, rate=lr.decay(1, 0.5))
    seen = []
    for step in range(5):
        if step == 3:
            training.load_state_dict(training.state_dict())
            training.rate = lr.constant(10.0)
        arena.grad["x"] += 1.0
        training.step()
        seen.append(float(arena["x"][0]))
    assert seen == [-1.0, -1.5, -1.75, -11.75, -21.75]


def test_workers_at_different_steps_get_an_error_on_every_rank_before_the_step() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        stage = GradientStage("none", comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 9, synchronous_steps=8, gradients=stage)
        training.averager.step = comm.rank
        arena.grad["x"] += 1.0
        with pytest.raises(MismatchError, match=r"gradients of step 1.*gradients of step 2"):
            training.step()
        return [float(arena["x"][0]), float(arena.grad["x"][0]), training.averager.step]

    assert run_threads(2, work) == [[0.0, 1.0, 0], [0.0, 1.0, 1]]


def test_some_workers_recording_samples_is_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        stage = GradientStage("none", comm)
        inner = optim.SGD(Arena({"x": np.zeros(1)}, comm), lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=8, gradients=stage)
        if comm.rank:
            training.record_samples(4)
        training.step()

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert "gradients of step 1, weighed by samples" in str(outcome)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"after": "world"}, ValueError, "after must be 'host' or 'none', got 'world'"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be above 0, got 0.0"),
        ({"max_own_norm": -1}, ValueError, "max_own_norm must be at least 0, got -1"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number, got '1'"),
    ],
)
def test_bad_options_are_an_error_on_every_rank(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        GradientStage(comm=comm, **(options if comm.rank == 1 else {}))

    assert_named_by_all(outcomes(2, work), error, message, "gradient stages")


def test_options_must_be_equal_on_all_ranks_and_of_the_averagers_workers() -> None:
    def work(comm: Communicator) -> None:
        with pytest.raises(MismatchError, match=r"max_norm=1\.0 on rank 0; max_norm=2\.0 on rank"):
            GradientStage(comm=comm, max_norm=1.0 + comm.rank)
        inner = optim.SGD(Arena({"x": np.zeros(1)}, comm), lr=1.0)
        averager = ModelAverager(every(2), comm)
        with pytest.raises(ValueError, match="among the averager's workers"):
            PostLocalSGDOptimizer(inner, averager, gradients=GradientStage("none", comm.split(0)))
        with pytest.raises(TypeError, match="gradients must be a GradientStage, got 'host'"):
            PostLocalSGDOptimizer(inner, averager, gradients="host")  # type: ignore[arg-type]

    run_threads(2, work)
    assert repr(GradientStage("host", solo(), max_norm=2)) == "GradientStage('host', max_norm=2)"
