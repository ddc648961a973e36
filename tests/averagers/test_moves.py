"""Outer steps of averagers that merge moves by rules of their own: where they are the mean's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DirectionalAverager,
    Guard,
    LowRankAverager,
    ModelAverager,
    SparseAverager,
    codecs,
    every,
    gossip,
    optim,
    outer,
    run_threads,
    solo,
)
from localsgd.outer import OuterOptimizer
from workers import assert_named_by_all, outcomes

Make = Callable[[Communicator, "OuterOptimizer | None"], ModelAverager]

# With these what is merged is the workers' mean move, to rounding.
AS_MEAN: dict[str, Make] = {
    "sparse": lambda comm, o: SparseAverager(every(2), codecs.TopK(7, 7), comm, outer=o),
    "low rank": lambda comm, o: LowRankAverager(every(2), 2, comm, outer=o),
    "directional": lambda comm, o: DirectionalAverager(every(2), comm, plain=["x"], outer=o),
    "directional, a codec": lambda comm, o: DirectionalAverager(
        every(2), comm, plain=["x"], outer=o, compress=codecs.TopK(7, 7)
    ),
}
OUTER: dict[str, Callable[[], OuterOptimizer]] = {
    "nesterov": lambda: outer.SGD(0.7, momentum=0.9, nesterov=True),
    "yogi": lambda: outer.Yogi(0.1),
    "adam": lambda: outer.using(optim.Adam, lr=0.1),
    "slowmo": lambda: outer.SlowMo(lambda: 0.1, beta=0.6),
}


def trained(comm: Communicator, averager: ModelAverager, dtype: Any = np.float64) -> np.ndarray:
    """Where seven steps and a flush end."""
    arena = Arena({"x": np.ones(7, dtype)}, comm, grad=False)
    averager.begin(arena)
    for step in range(1, 8):
        arena.flat[...] += 0.1 * np.sin(np.arange(7) + 3 * comm.rank + step) + 0.01
        averager.record_samples(1 + comm.rank)
        averager.average_parameters(arena)
    averager.flush(arena)
    return arena.flat.copy()


@pytest.mark.parametrize("kind", AS_MEAN)
@pytest.mark.parametrize("step", OUTER)
def test_an_outer_step_is_that_of_the_plain_averager(kind: str, step: str) -> None:
    """Float32 is what codecs compute in: 1e-5, where a move has the size of 0.1."""

    def work(comm: Communicator) -> None:
        plain = ModelAverager(every(2), comm, outer=OUTER[step]())
        expected = trained(comm, plain)
        found = trained(comm, AS_MEAN[kind](comm, OUTER[step]()))
        coded = kind == "sparse" or "codec" in kind
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if coded else 1e-12)
        assert not np.allclose(found, trained(comm, AS_MEAN[kind](comm, None)), atol=1e-2)
        assert len({values.tobytes() for values in comm.gather(found)}) == 1

    run_threads(3, work, hosts="2+1")


@pytest.mark.parametrize("kind", AS_MEAN)
def test_an_outer_optimizer_sends_nothing(kind: str) -> None:
    def work(comm: Communicator) -> None:
        sent = []
        for made in (None, OUTER["nesterov"]()):
            averager = AS_MEAN[kind](comm, made)
            trained(comm, averager, np.float32)
            sent.append(averager.traffic.sent)
        assert sent[0] == sent[1] > 0

    run_threads(3, work, hosts="1+1+1")


@pytest.mark.parametrize("kind", AS_MEAN)
def test_rounds_go_from_where_a_warm_up_ends(kind: str) -> None:
    """In it gradients are averaged, so workers move alike: by 1. Then each by 2 in one number.

    Of moves from there alone the largest of seven is 2; from the start it would be 3, and others 1.
    """
    few: dict[str, Callable[[Any, Communicator], ModelAverager]] = {
        "sparse": lambda when, comm: SparseAverager(when, codecs.TopK(1, 7), comm),
        "low rank": lambda when, comm: LowRankAverager(when, 1, comm),
        "directional": lambda when, comm: DirectionalAverager(when, comm),
        "directional, a codec": lambda when, comm: DirectionalAverager(
            when, comm, compress=codecs.TopK(1, 7)
        ),
    }

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(7)}, comm, grad=False)
        averager = few[kind](every(1, warmup_steps=1), comm)
        averager.begin(arena)
        arena.flat[...] += 1
        assert averager.average_parameters(arena)
        arena.flat[3] += 2
        averager.average_parameters(arena)
        return arena.flat.tolist()

    assert run_threads(2, work) == [[1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0]] * 2


@pytest.mark.filterwarnings("ignore:rank.* left out of a round:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "low rank", "directional", "directional, a codec"])
def test_who_is_left_out_takes_the_others_result_and_is_none_the_worse(kind: str) -> None:
    """What it has kept is finite still, what all keep alike is so, and rounds go on."""
    guard, few = Guard("leave out", verify=every(1)), codecs.TopK(2, 9)
    kinds: dict[str, Callable[[Communicator], ModelAverager]] = {
        "sparse": lambda comm: SparseAverager(every(1), few, comm, guard=guard),
        "low rank": lambda comm: LowRankAverager(every(1), 1, comm, guard=guard),
        "directional": lambda comm: DirectionalAverager(every(1), comm, guard=guard),
        "directional, a codec": lambda comm: DirectionalAverager(
            every(1), comm, compress=few, guard=guard
        ),
    }

    def work(comm: Communicator) -> None:
        arena = Arena({"m": np.zeros((3, 3)), "v": np.zeros(4)}, comm, grad=False)
        averager = kinds[kind](comm)
        averager.begin(arena)
        for turn in range(4):
            arena.flat[...] += np.sin(np.arange(13) + turn + comm.rank)
            if turn == 1 and comm.rank == 2:
                arena["m"][0] = np.nan
            averager.average_parameters(arena)
            assert averager.left_out == (turn == 1 and comm.rank == 2)
            kept = averager.state_dict()
            (key,) = set(kept) & {"sparse", "low rank", "directions"}
            assert all(np.isfinite(values).all() for values in kept[key][0].values())
            if "right" in kept[key][0]:
                assert len({v.tobytes() for v in comm.gather(kept[key][0]["right"])}) == 1

    run_threads(3, work)


@pytest.mark.parametrize("kind", AS_MEAN)
def test_a_state_of_another_outer_optimizer_is_refused_and_changes_nothing(kind: str) -> None:
    one, other = (AS_MEAN[kind](solo(), OUTER[name]()) for name in ("nesterov", "adam"))
    trained(solo(), one)
    trained(solo(), other)
    before = repr(other.state_dict())
    with pytest.raises(
        ValueError, match=r"what is saved of an arena must be \['anchor', 'exp_avg'"
    ):
        other.load_state_dict(one.state_dict())
    assert repr(other.state_dict()) == before
    waiting = AS_MEAN[kind](solo(), OUTER["adam"]())
    waiting.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"what is saved of an arena must be"):
        trained(solo(), waiting)
    assert not waiting.begun


def test_two_rates_are_refused_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        lr = 0.5 if comm.rank == 1 else 1.0
        SparseAverager(every(1), codecs.TopK(1, 4), comm, lr=lr, outer=OUTER["nesterov"]())

    words = "lr must be 1 with an outer optimizer, which has one, got 0.5"
    assert_named_by_all(outcomes(2, work), ValueError, words, "codecs and rates")


@pytest.mark.parametrize(
    "make",
    [
        lambda codec: SparseAverager(every(1), codec, solo()),
        lambda codec: DirectionalAverager(every(1), solo(), compress=codec),
        lambda codec: gossip.ChocoAverager(every(1), gossip.ring(), codec, 0.1, solo()),
    ],
    ids=["sparse", "directional", "choco"],
)
def test_codecs_with_which_residuals_grow_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="codec must lose less than there is, which an unbiased"):
        make(codecs.RandomK(0.1, unbiased=True))
    with pytest.raises(TypeError, match="codec must be one of localsgd.codecs, got 3"):
        make(3)
    with pytest.raises(ValueError, match="k must be at most the 4 numbers of the buffer, got 9"):
        make(codecs.TopK(9, 16)).begin(Arena({"x": np.zeros(4)}, solo(), grad=False))
