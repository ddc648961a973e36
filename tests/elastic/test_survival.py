"""Training goes on when workers are lost: rounds of those that are left, outer state kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    ModelAverager,
    PostLocalSGDOptimizer,
    ShardSampler,
    StreamingAverager,
    Survival,
    codecs,
    every,
    optim,
    outer,
    run_threads,
    solo,
)

COUNT = 37


def noise(rank: int, step: int) -> Any:
    return np.random.default_rng([rank, step]).normal(size=COUNT)


def made(comm: Communicator, outside: Any = None) -> tuple[Arena, PostLocalSGDOptimizer]:
    arena = Arena({"x": np.arange(COUNT, dtype=np.float64)}, comm)
    averager = ModelAverager(every(2), comm, outer=outside)
    return arena, PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


def written_out(sizes: dict[int, list[int]], steps: int, lr: float, momentum: float) -> Any:
    """DiLoCo in numpy; ``sizes`` has for the step of a round who holds it from there on."""
    left = sizes[0]
    x = {rank: np.arange(COUNT, dtype=np.float64) for rank in left}
    anchor, buffer = x[0].copy(), np.zeros(COUNT)
    for step in range(1, steps + 1):
        for rank in left:
            x[rank] = x[rank] - 0.1 * noise(rank, step)
        left = sizes.get(step, left)
        if step % 2 == 0:
            mean = sum(x[rank] for rank in left) / len(left)
            delta = anchor - mean
            buffer = momentum * buffer + delta
            anchor = anchor - lr * (delta + momentum * buffer)
            x = {rank: anchor.copy() for rank in left}
    return x[left[0]]


@pytest.mark.parametrize("hosts", ["4", "2+2", "1+1+1+1"])
def test_rounds_are_held_by_those_that_are_left(hosts: str) -> None:
    """Rank 1 is lost in its 5th step, before a round, and rank 3 after it in another."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena, training = made(comm)
        survival = Survival(training)
        for step in range(1, 11):
            arena.grad.flat[...] = noise(me, step)
            if (me, step) in ((1, 5), (3, 9)):
                raise KeyError
            training.step()
        assert survival.lost == 2 and training.averager.step == 10
        return arena.flat.copy()

    found = run_threads(4, body, hosts=hosts, fault_tolerant=True)
    wanted = written_out({0: [0, 1, 2, 3], 6: [0, 2, 3], 10: [0, 2]}, 10, 1.0, 0.0)
    assert len(found) == 2 and found[0].tobytes() == found[1].tobytes()
    # The contract's mean adds in another order than this one.
    np.testing.assert_allclose(found[0], wanted, rtol=1e-13)


@pytest.mark.parametrize("hosts", ["4", "2+2", "3+1", "2+1"])
def test_outer_momentum_is_what_it_was(hosts: str) -> None:
    """What the lost rank owned is read from its memory by another rank of its host."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena, training = made(comm, nesterov())
        Survival(training)
        for step in range(1, 9):
            arena.grad.flat[...] = noise(me, step)
            if (me, step) == (1, 5):
                raise KeyError
            training.step()
        return arena.flat.copy()

    size = sum(map(int, hosts.split("+")))
    found = run_threads(size, body, hosts=hosts, fault_tolerant=True)
    everyone = list(range(size))
    wanted = written_out({0: everyone, 6: [0, *everyone[2:]]}, 8, 0.7, 0.9)
    assert len(found) == size - 1
    for values in found:
        assert values.tobytes() == found[0].tobytes()
        np.testing.assert_allclose(values, wanted, rtol=1e-12)


class Dying(outer.SGD):
    """Plain averaging, in whose third round one rank raises when it has done its part."""

    def __init__(self, dies: bool) -> None:
        super().__init__(1.0)
        self._dies = dies

    def scalar_step(self) -> None:
        return None

    def update(self, block: outer.Block) -> None:
        super().update(block)
        if self._dies and block.round == 3:
            raise KeyError


@pytest.mark.parametrize("hosts", ["3", "2+1", "1+1+1"])
def test_a_round_that_fails_in_the_middle_has_changed_nothing(hosts: str) -> None:
    """What others have written of the mean by then is put back before they hold it again."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena, training = made(comm, Dying(me == 1))
        Survival(training)
        for step in range(1, 9):
            arena.grad.flat[...] = noise(me, step)
            training.step()
        return arena.flat.copy()

    found = run_threads(3, body, hosts=hosts, fault_tolerant=True)
    wanted = written_out({0: [0, 1, 2], 6: [0, 2]}, 8, 1.0, 0.0)
    assert len(found) == 2 and found[0].tobytes() == found[1].tobytes()
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)


class LostInRecovery:
    """A part that is lost when the others regroup, once."""

    def __init__(self, dies: bool) -> None:
        self._dies = dies

    def regroup(self) -> None:
        if self._dies:
            raise KeyError


@pytest.mark.parametrize("hosts", ["4", "2+2", "0,1,3/2"])
def test_outer_momentum_is_what_it_was_when_another_is_lost_in_the_recovery(hosts: str) -> None:
    """Rank 1 before a round, and rank 3 when it has already shared out what that one owned."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena, training = made(comm, nesterov())
        Survival(training, LostInRecovery(me == 3))
        for step in range(1, 9):
            arena.grad.flat[...] = noise(me, step)
            if (me, step) == (1, 5):
                raise KeyError
            training.step()
        return arena.flat.copy()

    found = run_threads(4, body, hosts=hosts, fault_tolerant=True)
    wanted = written_out({0: [0, 1, 2, 3], 6: [0, 2]}, 8, 0.7, 0.9)
    assert len(found) == 2 and found[0].tobytes() == found[1].tobytes()
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)


def lifted(comm: Communicator, averager: ModelAverager) -> dict[str, Any]:
    """What this rank has not sent, by the whole buffer."""
    (kept,) = averager.state_dict()["compression"]
    found, place = {way: np.zeros(COUNT) for way in kept["unsent"]}, 0
    for part in comm.held(COUNT):
        length = part.stop - part.start
        for way, values in kept["unsent"].items():
            found[way][part] = values[place : place + length]
        place += length
    return found


@pytest.mark.parametrize("hosts", ["2+2", "0,2/1,3", "3+1", "2+1", "1+1+1"])
def test_what_those_that_are_left_have_not_sent_is_sent_later(hosts: str) -> None:
    """Closed form 11 across a loss: parameters and residuals have moved by the exact means.

    Of what each host had not sent the share of its workers now counts; the lost rank's parts of it
    are lost. 1e-12 for rounding in float64.
    """

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena = Arena({"x": np.zeros(COUNT)}, comm)
        averager = ModelAverager(every(2), comm, compress=codecs.Sign(8))
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        start, before = dict[str, Any](), arena.flat
        for step in range(1, 13):
            arena.grad.flat[...] = noise(me, step)
            if (me, step) == (1, 5):
                raise KeyError
            if step == 5:
                start = {"x": before, **lifted(comm, averager)}
            training.step()
            before = arena.flat.copy()
        share = len(comm.topology.neighbours(comm.rank)) / comm.size
        return me, share, start, {"x": arena.flat.copy(), **lifted(comm, averager)}

    size = sum(map(int, hosts.split("+"))) if "+" in hosts else 4
    found = run_threads(size, body, hosts=hosts, fault_tolerant=True)
    assert len(found) == size - 1

    def total(moment: int) -> Any:
        unsent = sum(share * at[moment]["values"] + at[moment]["result"] for _, share, *at in found)
        return found[0][2 + moment]["x"] + unsent

    left = [me for me, *_ in found]
    moved = -0.1 * sum(noise(me, step) for me in left for step in range(5, 13)) / len(left)
    np.testing.assert_allclose(total(1) - total(0), moved, rtol=1e-12, atol=1e-12)
    assert len({at["x"].tobytes() for *_, at in found}) == 1
    assert max(np.abs(at["values"]).max() for _, _, at, _ in found) > 1e-3


def test_a_codec_has_nothing_to_do_once_one_host_is_left() -> None:
    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena = Arena({"x": np.zeros(COUNT)}, comm)
        averager = ModelAverager(every(2), comm, outer=nesterov(), compress=codecs.Sign(8))
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        for step in range(1, 9):
            arena.grad.flat[...] = noise(me, step)
            if (me, step) == (2, 5):
                raise KeyError
            training.step()
        assert "compression" not in averager.state_dict()
        return arena.flat.tobytes()

    first, second = run_threads(3, body, hosts="2+1", fault_tolerant=True)
    assert first == second


def test_what_a_lost_host_owned_begins_anew() -> None:
    """Its third of the model takes the mean in that round, the rest its outer step."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena, training = made(comm, nesterov())
        Survival(training)
        for step in range(1, 5):
            arena.grad.flat[...] = noise(me, step)
            if (me, step) == (1, 3):
                raise KeyError
            training.step()
        return arena.flat.copy()

    found = run_threads(3, body, hosts="1+1+1", fault_tolerant=True)
    wanted = written_out({0: [0, 1, 2], 4: [0, 2]}, 4, 0.7, 0.9)
    start = written_out({0: [0, 1, 2]}, 2, 0.7, 0.9)
    mean = start - 0.1 * sum(noise(r, 3) + noise(r, 4) for r in (0, 2)) / 2
    lost = slice(COUNT // 3, 2 * COUNT // 3)
    wanted[lost] = mean[lost]
    for values in found:
        np.testing.assert_allclose(values, wanted, rtol=1e-12)


def test_the_data_is_dealt_to_those_that_are_left() -> None:
    """Nine samples in batches of one: all are seen but those of the lost one's turns before."""

    def body(comm: Communicator) -> list[int]:
        me, seen = comm.rank, list[int]()
        _, training = made(comm)
        sampler = ShardSampler(9, 1, seed=0, comm=comm, shuffle=False)
        Survival(training, sampler)
        for step, batch in enumerate(sampler, 1):
            if (me, step) == (2, 2):
                raise KeyError
            seen.extend(batch.tolist())
            training.step()
        return seen

    found = run_threads(3, body, fault_tolerant=True)
    assert found == [[0, 3, 6, 8], [1, 4, 7]]


def test_what_cannot_survive_is_refused() -> None:
    arena = Arena({"x": np.zeros(3)}, solo())
    streaming = PostLocalSGDOptimizer(
        optim.SGD(arena, lr=0.1), StreamingAverager(1, 1, solo(), delay=1)
    )
    streaming.step()
    with pytest.raises(ValueError, match="while no fragment is on its way"):
        Survival(streaming)
    streaming.flush()
    Survival(streaming)
    _, training = made(solo())
    with pytest.raises(TypeError, match=r"parts must have regroup\(\), .* got 3"):
        Survival(training, 3)  # type: ignore[arg-type]
