"""The gradient stage: post-local SGD and skipped steps against the written-out reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    optim,
    run_threads,
)
from workers import LAYOUTS, gradient, initial_values, reference

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
