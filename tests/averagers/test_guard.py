"""What rounds do about numbers that are not finite, worked out by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from averager_kinds import KINDS
from localsgd import (
    SCAFFOLD,
    Arena,
    Communicator,
    ElasticAverager,
    Guard,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    NotFiniteError,
    StreamingAverager,
    codecs,
    every,
    gossip,
    optim,
    outer,
    run_threads,
    solo,
)
from workers import outcomes

pytestmark = pytest.mark.filterwarnings("ignore:rank.* left out of a round:UserWarning")

LEAVES = Guard("leave out")
NAN, INF = np.nan, np.inf


def arena_of(comm: Communicator, w: list[float], b: float = 0.0) -> Arena:
    return Arena({"w": np.array(w, float), "b": np.array([b])}, comm, grad=False, start="keep")


def moved(
    values: list[list[float]],
    make: Callable[[Communicator], ModelAverager],
    hosts: str | None = None,
) -> list[Any]:
    """What parameters w, begun at 0 and moved to these values, are after a round; or the error."""

    def work(comm: Communicator) -> list[float]:
        arena = arena_of(comm, [0.0] * len(values[0]))
        averager = make(comm)
        averager.begin(arena)
        arena["w"] = values[comm.rank]
        averager.average_parameters(arena)
        return list(arena["w"])

    return outcomes(len(values), work, hosts)


@pytest.mark.parametrize("hosts", ["3", "2+1", "1+1+1"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_round_names_worker_parameter_step_and_how_many(bad: float, hosts: str) -> None:
    """Where all are finite 0 + 1 + 2 over 3 is 1; at the other place each keeps its own."""

    def work(comm: Communicator) -> tuple[str, str, int]:
        arena = arena_of(comm, [comm.rank, comm.rank], b=1.0)
        if comm.rank == 2:
            arena["w"][1], arena["b"][0] = bad, bad
        averager = ModelAverager(every(1), comm)
        with pytest.raises(NotFiniteError) as raised:
            averager.average_parameters(arena)
        return str(raised.value), repr(arena["w"].tolist()), averager.step

    message = (
        "parameters must be finite, got in round after step 1: 2 on rank 2 that are not, the "
        "first in 'w' (number 1)"
    )
    found = run_threads(3, work, hosts=hosts)
    assert found == [(message, repr([1.0, own]), 0) for own in (0.0, 1.0, bad)]


def test_a_guard_of_none_lets_everything_pass() -> None:
    """(1 + NaN) / 2."""
    found = moved([[1.0], [NAN]], lambda comm: ModelAverager(every(1), comm, guard=None))
    assert np.isnan(found).all()


@pytest.mark.parametrize("hosts", ["3", "2+1", "1+1+1"])
def test_who_is_not_finite_is_left_out_and_takes_the_others_mean(hosts: str) -> None:
    """Place by place: (3 + 6 + 0) / 3; (2 + 4) / 2 without rank 2; 8 / 1 without ranks 1 and 2.

    In the pass ranks 1 and 2 are found, and both left out of the rest: so the second place is
    rank 0's own 2, though rank 1 was finite there.
    """
    values = [[3.0, 2.0, 8.0], [6.0, 4.0, INF], [0.0, NAN, NAN]]
    found = moved(values, lambda comm: ModelAverager(every(1), comm, guard=LEAVES), hosts)
    assert found == [[3.0, 2.0, 8.0]] * 3


@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_an_outer_step_without_a_worker_is_that_of_the_others(hosts: str) -> None:
    """From 0 half way to the mean: (3 + 6 + 0) / 3 / 2 = 1.5, and (2 + 4) / 2 / 2 = 1.5."""
    values = [[3.0, 2.0], [6.0, 4.0], [0.0, NAN]]

    def make(comm: Communicator) -> ModelAverager:
        return ModelAverager(every(1), comm, outer=outer.SGD(0.5), guard=LEAVES)

    assert moved(values, make, hosts) == [[1.5, 1.5]] * 3


def test_a_compressed_round_is_looked_at_before_it_begins() -> None:
    """Nothing has changed if it raises; else the mean is (2 + 4) / 2 and (1 + 3) / 2."""
    values = [[2.0, 1.0], [4.0, 3.0], [0.0, NAN]]

    def make(guard: Guard) -> Callable[[Communicator], ModelAverager]:
        return lambda comm: ModelAverager(every(1), comm, compress=codecs.FLOAT16, guard=guard)

    assert moved(values, make(LEAVES), "1+1+1") == [[3.0, 2.0]] * 3
    found = moved(values, make(Guard()), "1+1+1")
    words = "got in round after step 1: 1 on rank 2 that are not, the first in 'w' \\(number 1\\)"
    for error in found:
        with pytest.raises(NotFiniteError, match=words):
            raise error


@pytest.mark.parametrize("compress", [None, codecs.FLOAT16], ids=["plain", "compressed"])
def test_if_nobody_is_left_it_is_an_error_on_all(compress: codecs.Codec | None) -> None:
    found = moved(
        [[NAN, 1.0], [1.0, INF]],
        lambda comm: ModelAverager(every(1), comm, compress=compress, guard=LEAVES),
        "1+1",
    )
    assert [type(error) for error in found] == [NotFiniteError] * 2
    assert found[0].ranks == (0, 1)


def test_samples_weigh_and_a_worker_without_any_is_not_read() -> None:
    """(1·2 + 3·6) / 4 = 5, whatever the worker that recorded 0 samples holds."""

    def work(comm: Communicator) -> list[float]:
        arena = arena_of(comm, [[2.0, 6.0, NAN][comm.rank]])
        averager = ModelAverager(every(1), comm)
        averager.record_samples([1, 3, 0][comm.rank])
        averager.average_parameters(arena)
        return list(arena["w"])

    assert run_threads(3, work) == [[5.0]] * 3


def test_a_round_of_a_smaller_group_concerns_that_group_alone() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = arena_of(comm, [[1.0, 3.0, 5.0, NAN][comm.rank]])
        levels: dict[int, Any] = {1: 2, 4: "world"}
        averager = HierarchicalModelAverager(levels, 1, comm, guard=LEAVES)
        averager.step = 1
        averager.average_parameters(arena)
        return list(arena["w"])

    assert run_threads(4, work) == [[2.0], [2.0], [5.0], [5.0]]


def test_the_first_rank_and_the_one_left_out_say_so(recwarn: pytest.WarningsRecorder) -> None:
    def work(comm: Communicator) -> bool:
        arena = arena_of(comm, [NAN if comm.rank == 1 else 1.0])
        averager = ModelAverager(every(1), comm, guard=LEAVES)
        averager.average_parameters(arena)
        return averager.left_out

    warnings.simplefilter("always")
    assert run_threads(3, work) == [False, True, False]
    message = "rank 1 left out of a round, since parameters must be finite, got in round after"
    assert [str(entry.message)[: len(message)] for entry in recwarn] == [message] * 2


@pytest.mark.parametrize("state", ["local", "mean", "reset"])
def test_a_worker_that_was_left_out_goes_on_with_state_that_is_finite(state: Any) -> None:
    """Rank 1's momentum is NaN by then: it is 0 with "local", and rank 0's with "mean".

    Rank 0 steps from 0 with gradient 1 at rate 1: its momentum is 1 and it stands at -1. Then all
    step with gradient 1 and momentum 0.5: to -1 - 1.5, and rank 1 to -1 - 1 from nothing.
    """

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0, momentum=0.5), 1, state=state, guard=LEAVES)
        arena.grad["x"][0] = [1.0, NAN][comm.rank]
        training.step()
        assert list(arena["x"]) == [-1.0]
        arena.grad["x"][0] = 1.0
        training.optim.step()
        return list(arena["x"])

    second = {"local": [-2.5], "mean": [-2.5], "reset": [-2.0]}[state]
    assert run_threads(2, work) == [second, [-2.5] if state == "mean" else [-2.0]]


def test_resuming_after_an_error_from_what_was_saved_is_never_having_met_it() -> None:
    def work(comm: Communicator, spoil: bool) -> list[float]:
        arena = arena_of(comm, [0.0, 0.0])
        averager = ModelAverager(every(2), comm, outer=outer.SGD(0.5, momentum=0.5))
        averager.begin(arena)
        saved: Any = None
        for step in range(1, 7):
            if step == 3:
                saved = averager.state_dict(), arena.flat.copy()
            arena["w"] += [step, comm.rank]
            if spoil and step == 4:
                arena["w"][0] = NAN if comm.rank else 4.0
                with pytest.raises(NotFiniteError):
                    averager.average_parameters(arena)
                averager.load_state_dict(saved[0])
                arena.flat[...] = saved[1]
                for again in (3, 4):
                    arena["w"] += [again, comm.rank]
                    averager.average_parameters(arena)
            else:
                averager.average_parameters(arena)
        return list(arena["w"])

    assert run_threads(2, work, True) == run_threads(2, work, False)


@pytest.mark.parametrize("delay", [0, 2])
def test_a_fragment_that_is_not_finite_changes_no_parameters(delay: int) -> None:
    """It leaves after step 2, and arrives after step 2 + delay."""

    def work(comm: Communicator) -> tuple[int, list[float]]:
        arena = arena_of(comm, [1.0, 2.0])
        averager = StreamingAverager(2, 1, comm, delay=delay)
        averager.begin(arena)
        arena["w"][1] = NAN if comm.rank == 1 else 2.0
        for _ in range(1 + delay):
            averager.average_parameters(arena)
        with pytest.raises(NotFiniteError, match=r"1 on rank 1 that are not, the first in 'w'"):
            averager.average_parameters(arena)
        return averager.step, list(arena["w"])

    found = run_threads(2, work)
    assert [steps for steps, _ in found] == [1 + delay] * 2
    assert found[0][1] == [1.0, 2.0]


def test_gossip_does_not_mix_with_what_is_not_finite() -> None:
    """On a ring of four rank 2 is no neighbour of rank 0, which mixes with the other two."""

    def work(comm: Communicator) -> list[float]:
        arena = arena_of(comm, [NAN if comm.rank == 2 else float(comm.rank)])
        averager = gossip.GossipAverager(every(1), gossip.ring(), comm)
        averager.average_parameters(arena)
        return list(arena["w"])

    found = outcomes(4, work)
    assert np.isfinite(found[0]).all()
    for error in found[1:]:
        with pytest.raises(NotFiniteError, match=r"step 1, got some that are not on rank 2$"):
            raise error


@pytest.mark.parametrize("name", KINDS)
def test_no_averager_lets_a_nan_into_another_worker(name: str) -> None:
    """Rank 1 holds one NaN; whenever that is noticed it is named, and rank 0 is finite."""

    def work(comm: Communicator) -> bool:
        arena = Arena({"w": np.ones((4, 4)), "b": np.zeros(3)}, comm, grad=False)
        averager = KINDS[name].make(comm)
        averager.begin([arena])

        def spoil() -> None:
            for _ in range(12):
                if comm.rank == 1:
                    arena["w"][1, 1] = NAN
                if KINDS[name].samples:
                    averager.record_samples(1)
                averager.average_parameters([arena])

        with pytest.raises(NotFiniteError) as raised:
            spoil()
        return raised.value.ranks == (1,) and (np.isfinite(arena.flat).all() or comm.rank == 1)

    hosts = "2" if name == "hierarchical" else "1+1"
    assert run_threads(2, work, hosts=hosts) == [True, True]


class Spoiling:
    """A companion that changes a parameter of rank 1, after it was averaged."""

    words = "nothing"

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def ready(self, group: Communicator, weight: float | None) -> None:
        pass

    def join(self, group: Communicator, weight: float | None) -> None:
        self._arena["b"] += group.rank


def test_workers_are_compared_after_the_rounds_that_a_schedule_names() -> None:
    """Of two spoilt rounds the second is looked at, and so is a flush."""

    def work(comm: Communicator) -> list[str]:
        arena = arena_of(comm, [comm.rank, 1.0])
        averager = ModelAverager(every(1), comm, guard=Guard(verify=every(2)))
        averager.average_parameters(arena, [Spoiling(arena)])
        with pytest.raises(MismatchError) as round_raised:
            averager.average_parameters(arena, [Spoiling(arena)])
        with pytest.raises(MismatchError) as flush_raised:
            averager.flush(arena, [Spoiling(arena)])
        averager.average_parameters(arena)
        return [str(raised.value) for raised in (round_raised, flush_raised)]

    for messages in run_threads(2, work):
        for message, what in zip(
            messages, ["round after step 2", "flush after step 1"], strict=True
        ):
            assert message.startswith(f"parameters must be equal after the {what}, got parameter")
            assert "'b' with digest" in message
            assert "'w'" not in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda comm: Guard("skip"), "not_finite must be one of raise, leave out, or None, got"),
        (lambda comm: Guard(verify=3), r"verify must have due\(step\), as every\(8\) has, got 3"),
        (
            lambda comm: ModelAverager(every(1), comm, guard="raise"),
            "guard must be a Guard or None, got 'raise'",
        ),
        (
            lambda comm: ElasticAverager(every(1), comm, guard=LEAVES),
            "guard must raise or be None with this averager",
        ),
        (
            lambda comm: StreamingAverager(2, 1, comm, guard=Guard(verify=every(2))),
            "guard must be without verify where workers differ after a round",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[Communicator], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(solo())


def training(
    guard: Guard, make: Callable[..., Any] = LocalSGD, momentum: float = 0.0, **options: Any
) -> Any:
    arena = Arena({"x": np.zeros(1)}, solo())
    return make(optim.SGD(arena, lr=1.0, momentum=momentum), 4, guard=guard, **options)


def test_state_that_goes_by_schedules_cannot_be_made_up_for() -> None:
    with pytest.raises(ValueError, match="state must be 'local', 'mean' or 'reset' where a guard"):
        training(LEAVES, momentum=0.5, state={"momentum_buffer": every(8)})


def test_control_variates_need_the_rounds_of_all() -> None:
    with pytest.raises(ValueError, match="SCAFFOLD must have the rounds of all workers, got guard"):
        training(LEAVES, SCAFFOLD)


def test_guards_that_differ_are_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> ModelAverager:
        return ModelAverager(every(1), comm, guard=LEAVES if comm.rank else Guard())

    for error in outcomes(2, work):
        with pytest.raises(MismatchError, match="guards must be equal on every rank"):
            raise error
