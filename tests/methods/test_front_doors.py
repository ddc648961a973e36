"""A front door is its parts with the paper's numbers, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    EASGD,
    SCAFFOLD,
    Arena,
    Communicator,
    DiLoCo,
    ElasticAverager,
    GradientStage,
    LocalSGD,
    MismatchError,
    ModelAverager,
    OverlappedAverager,
    OverlappedSGD,
    PostLocalSGDOptimizer,
    SlowMo,
    StreamingAverager,
    StreamingDiLoCo,
    codecs,
    every,
    lr,
    optim,
    outer,
    run_threads,
)
from workers import assert_named_by_all, outcomes

Make = Callable[[optim.Optimizer, Communicator], Any]


def nesterov(lr: float) -> outer.SGD:
    return outer.SGD(lr, momentum=0.9, nesterov=True)


DOORS: dict[str, tuple[Make, Make]] = {
    "LocalSGD": (
        lambda inner, _: LocalSGD(inner, 4),
        lambda _, comm: ModelAverager(every(4), comm),
    ),
    "DiLoCo": (
        lambda inner, _: DiLoCo(inner, 4),
        lambda _, comm: ModelAverager(every(4), comm, outer=nesterov(0.7)),
    ),
    "SlowMo": (
        lambda inner, _: SlowMo(inner, 4),
        lambda inner, comm: ModelAverager(every(4), comm, outer=outer.SlowMo(inner, beta=0.6)),
    ),
    "StreamingDiLoCo": (
        lambda inner, _: StreamingDiLoCo(inner, 4, [["a"], ["b"]]),
        lambda _, comm: StreamingAverager(
            4, [["a"], ["b"]], comm, outer=nesterov(0.4), delay=1, mixing=0.5
        ),
    ),
    "OverlappedSGD": (
        lambda inner, _: OverlappedSGD(inner, 4, 2),
        lambda _, comm: OverlappedAverager(4, 2, comm),
    ),
    "EASGD": (
        lambda inner, _: EASGD(inner, 4),
        lambda _, comm: ElasticAverager(every(4), comm),
    ),
}


def trained(training: Any, arena: Arena) -> list[bytes]:
    found = []
    for step in range(11):
        arena.grad.flat[:] = np.sin(arena.flat + arena.comm.rank + step)
        training.step()
        found.append(arena.flat.tobytes())
    return [*found, *(values.tobytes() for values in training.averager.mean_of(arena).values())]


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("hosts", ["1", "2+1"])
def test_a_front_door_is_its_parts(name: str, hosts: str) -> None:
    door, parts = DOORS[name]

    def work(comm: Communicator) -> None:
        found = []
        for whole in (True, False):
            arena = Arena({"a": np.ones(3), "b": np.zeros(5)}, comm)
            inner = optim.SGD(arena, lr=0.1, momentum=0.5)
            if whole:
                training = door(inner, comm)
            else:
                training = PostLocalSGDOptimizer(inner, parts(inner, comm))
            found.append(trained(training, arena))
        assert found[0] == found[1]

    run_threads(sum(map(int, hosts.split("+"))), work, hosts=hosts)


@pytest.mark.parametrize("name", DOORS)
def test_front_doors_take_the_options_of_local_sgd(name: str) -> None:
    """Synchronous by gradients at first, momentum reset by rounds, a rate by the step."""
    door, _ = DOORS[name]

    def work(comm: Communicator) -> tuple[bytes, list[str]]:
        arena = Arena({"a": np.ones(3), "b": np.zeros(5)}, comm)
        inner = optim.SGD(arena, lr=0.1, momentum=0.5)
        kind = type(door(inner, comm))
        period = {"period": 4} if name != "StreamingDiLoCo" else {"period": 4, "fragments": 2}
        training = kind(
            inner,
            **period,
            synchronous_steps=3,
            gradients=GradientStage(comm=comm),
            state="reset",
            rate=lr.cosine(20),
        )
        equal = []
        for step in range(4):
            arena.grad.flat[:] = np.sin(arena.flat + comm.rank + step)
            training.step()
            equal.append(len({values.tobytes() for values in comm.gather(arena.flat)}) == 1)
        training.flush()
        values = training.mean()
        assert set(values) == {"a", "b"}
        return arena.flat.tobytes(), [str(entry) for entry in equal]

    found = run_threads(2, work)
    assert found[0] == found[1]
    assert found[0][1][:3] == ["True"] * 3 and found[0][1][3] == "False"


@pytest.mark.parametrize("name", [name for name in DOORS if name != "EASGD"])
def test_front_doors_compress(name: str) -> None:
    """Through a codec that rounds coarsely, others than without it, and equal after a flush."""

    def work(comm: Communicator, compress: codecs.Codec | None) -> list[bytes]:
        arena = Arena({"a": np.ones(3), "b": np.zeros(5)}, comm)
        inner = optim.SGD(arena, lr=0.1)
        fragments = {"fragments": 2} if name == "StreamingDiLoCo" else {}
        training = type(DOORS[name][0](inner, comm))(
            inner, period=4, compress=compress, **fragments
        )
        assert len(trained(training, arena)) == 13
        training.flush()
        return [arena.flat.tobytes()]

    rough, exact = (
        run_threads(3, lambda comm, codec=codec: work(comm, codec), hosts="2+1")
        for codec in (codecs.Sign(8), None)
    )
    assert rough == [rough[0]] * 3 and rough[0] != exact[0]


@pytest.mark.parametrize("kind", [EASGD, SCAFFOLD])
def test_methods_that_need_exact_rounds_refuse_codecs_on_every_rank(kind: Any) -> None:
    def work(comm: Communicator) -> None:
        inner = optim.SGD(Arena({"a": np.ones(3)}, comm), lr=0.1)
        kind(inner, 4, compress=codecs.Int8() if comm.rank == 1 else None)

    words = rf"{kind.__name__} must have exact rounds, got compress=int8\(256\)"
    assert_named_by_all(outcomes(2, work), ValueError, words, "codecs")


@pytest.mark.parametrize(
    ("make", "error", "message", "what"),
    [
        (lambda o, bad: DiLoCo(o, 0 if bad else 4), ValueError, "period must be", "schedules"),
        (
            lambda o, bad: DiLoCo(o, 4, outer_momentum=1.0 if bad else 0.9),
            ValueError,
            "momentum must be less than 1, got 1.0",
            "outer optimizers",
        ),
        (
            lambda o, bad: SlowMo(o, 4, beta=1.0 if bad else 0.5),
            ValueError,
            "beta must be less than 1",
            "outer optimizers",
        ),
        (
            lambda o, bad: StreamingDiLoCo(o, 4, 9 if bad else 2),
            ValueError,
            "fragments must be at most the period",
            "fragments",
        ),
        (
            lambda o, bad: EASGD(o, 4, beta=2 if bad else 1),
            ValueError,
            "beta must be above",
            "rates",
        ),
        (
            lambda o, bad: OverlappedSGD(o, 4, 5 if bad else 1),
            ValueError,
            "delay must",
            "fragments",
        ),
    ],
)
def test_numbers_out_of_range_on_one_rank_are_an_error_on_all(
    make: Any, error: type[Exception], message: str, what: str
) -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"a": np.ones(3), "b": np.zeros(5)}, comm)
        make(optim.SGD(arena, lr=0.1), comm.rank == 1)

    assert_named_by_all(outcomes(2, work), error, message, what)


def test_different_numbers_are_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"a": np.ones(3)}, comm)
        DiLoCo(optim.SGD(arena, lr=0.1), 4, outer_lr=0.7 + 0.1 * comm.rank)

    for found in outcomes(2, work):
        assert isinstance(found, MismatchError)
        assert "outer optimizers" in str(found)
