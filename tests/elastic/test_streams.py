"""Fragments on their way are given up when workers are lost, and leave again when they are due."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    ModelAverager,
    OverlappedAverager,
    PostLocalSGDOptimizer,
    StreamingAverager,
    Survival,
    codecs,
    every,
    optim,
    outer,
    run_threads,
)
from streams_written_out import SIZES, Loss, Written, noise

pytestmark = pytest.mark.long

LAYOUTS = ["4", "2+2", "3", "2+1"]


def size_of(hosts: str) -> int:
    return 4 if "/" in hosts else sum(map(int, hosts.split("+")))


def without(hosts: str, *lost: int) -> list[int]:
    return [rank for rank in range(size_of(hosts)) if rank not in lost]


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


def streamed(step: int) -> Sequence[str]:
    """The fragments that leave after a step, of two in a period of 4."""
    return {0: ["a"], 2: ["b"]}.get(step % 4, []) if step > 0 else []


def whole(step: int) -> Sequence[str]:
    """All parameters leave after every fourth step."""
    return list(SIZES) if step > 0 and step % 4 == 0 else []


class Dying(outer.SGD):
    """Nesterov's step, in one round of which a rank raises when it has done its part."""

    def __init__(self, round: int) -> None:
        super().__init__(0.7, momentum=0.9, nesterov=True)
        self._round = round

    def scalar_step(self) -> None:
        return None

    def update(self, block: outer.Block) -> None:
        super().update(block)
        if block.round == self._round:
            raise KeyError


class LostInRecovery:
    """A part that is lost when the others regroup."""

    def __init__(self, dies: bool) -> None:
        self._dies = dies

    def regroup(self) -> None:
        if self._dies:
            raise KeyError


def streaming(comm: Communicator, **options: Any) -> ModelAverager:
    plan = [[name] for name in SIZES]
    return StreamingAverager(4, plan, comm, **{"outer": nesterov(), "delay": 3, **options})


def train(
    comm: Communicator,
    averager: ModelAverager,
    meet: Callable[[int], None],
    steps: int = 13,
    part: LostInRecovery | None = None,
) -> Any:
    """What a worker holds after a flush; ``meet`` is told of every step, and at last of step 0."""
    me = comm.rank
    values = {name: np.arange(count, dtype=np.float64) for name, count in SIZES.items()}
    arena = Arena(values, comm)
    training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
    Survival(training, *([] if part is None else [part]))
    for step in range(1, steps + 1):
        meet(step)
        for name in SIZES:
            arena.grad[name] += noise(me, step, name)
        training.step()
    meet(0)
    training.flush()
    assert averager.step == steps
    return np.concatenate([arena[name] for name in SIZES])


def trained(
    hosts: str,
    make: Callable[[Communicator], ModelAverager],
    lost: dict[int, int],
    steps: int = 13,
    in_recovery: int | None = None,
) -> list[Any]:
    """What those that are left hold after a flush.

    Args:
        lost: for some ranks the step in which they raise before a round; 0 is the flush.
    """

    def body(comm: Communicator) -> Any:
        me = comm.rank

        def meet(step: int) -> None:
            if lost.get(me) == step:
                raise KeyError

        return train(comm, make(comm), meet, steps, LostInRecovery(me == in_recovery))

    found = run_threads(size_of(hosts), body, hosts=hosts, fault_tolerant=True)
    assert len({values.tobytes() for values in found}) == 1
    return found


def check(found: Sequence[Any], wanted: Any) -> None:
    """1e-12 for rounding: means are computed in another order here."""
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hosts", [*LAYOUTS, "1+1+1"])
@pytest.mark.parametrize("in_the_pass", [False, True])
def test_without_delay_it_is_the_plain_averager_to_the_bit(hosts: str, in_the_pass: bool) -> None:
    """One fragment; rank 1 is lost before the third round, or in the middle of it."""

    def optimizer(comm: Communicator) -> outer.OuterOptimizer:
        return Dying(3 if in_the_pass and comm.rank == 1 else 0)

    def plain(comm: Communicator) -> ModelAverager:
        return ModelAverager(every(2), comm, outer=optimizer(comm))

    def streams(comm: Communicator) -> ModelAverager:
        return StreamingAverager(2, 1, comm, outer=optimizer(comm))

    lost = {} if in_the_pass else {1: 5}
    wanted = trained(hosts, plain, lost)
    assert len(wanted) == size_of(hosts) - 1
    assert trained(hosts, streams, lost)[0].tobytes() == wanted[0].tobytes()


@pytest.mark.parametrize("hosts", LAYOUTS)
@pytest.mark.parametrize("step", [5, 6, 7, 8, 9])
@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_what_was_on_its_way_is_as_if_it_had_not_left(hosts: str, step: int, mixing: float) -> None:
    """Rank 1 is lost before that step, after each of which a fragment leaves or arrives."""
    found = trained(hosts, lambda comm: streaming(comm, mixing=mixing), {1: step})
    left = without(hosts, 1)
    assert len(found) == len(left)
    written = Written(streamed, 3, mixing)
    check(found, written.run(size_of(hosts), 13, {step: Loss(left)}))


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_a_round_in_the_background_that_fails_in_the_middle_is_given_up(hosts: str) -> None:
    """Rank 1 raises in the round that left after step 8; all find out when it is to arrive."""

    def make(comm: Communicator) -> ModelAverager:
        return StreamingAverager(
            4, [list(SIZES)], comm, outer=Dying(2 if comm.rank == 1 else 0), delay=3
        )

    found = trained(hosts, make, {})
    left = without(hosts, 1)
    written = Written(whole, 3)
    check(found, written.run(size_of(hosts), 13, {11: Loss(left)}))


@pytest.mark.parametrize("hosts", LAYOUTS)
@pytest.mark.parametrize("delay", [1, 4])
@pytest.mark.parametrize("step", [9, 10, 12])
def test_delayed_averaging_goes_on(hosts: str, delay: int, step: int) -> None:
    """All parameters leave after steps 4, 8, 12; with a delay of 4 where the last ones arrive."""

    def make(comm: Communicator) -> ModelAverager:
        return OverlappedAverager(4, delay, comm, outer=nesterov())

    found = trained(hosts, make, {1: step})
    left = without(hosts, 1)
    written = Written(whole, delay, keep_progress=True)
    due = 9 if (delay, step) == (1, 9) else 12
    check(found, written.run(size_of(hosts), 13, {due: Loss(left)}))


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_who_is_lost_at_the_flush_leaves_the_others_alike(hosts: str) -> None:
    """Both fragments are on their way then, and do not arrive."""
    found = trained(hosts, streaming, {1: 0}, steps=14)
    left = without(hosts, 1)
    check(found, Written(streamed, 3).run(size_of(hosts), 14, {0: Loss(left)}))


@pytest.mark.parametrize("hosts", ["4", "2+2", "3+1"])
@pytest.mark.parametrize("step", [2, 6])
def test_synchronous_steps_come_first(hosts: str, step: int) -> None:
    """Rank 1 is lost in one of the 3 of them, or when fragment b has left for the first time."""
    found = trained(hosts, lambda comm: streaming(comm, synchronous_steps=3), {1: step})
    left = without(hosts, 1)
    due = {2: 2, 6: 7}[step]
    check(found, Written(streamed, 3).run(size_of(hosts), 13, {due: Loss(left)}, together=3))


@pytest.mark.parametrize("hosts", ["4", "2+2", "0,1,3/2"])
def test_outer_state_is_what_it_was_when_another_is_lost_in_the_recovery(hosts: str) -> None:
    """Rank 1 with both fragments on their way, rank 3 when it has shared out what that owned."""
    found = trained(hosts, streaming, {1: 7}, in_recovery=3)
    check(found, Written(streamed, 3).run(4, 13, {7: Loss([0, 2])}))


@pytest.mark.parametrize(("hosts", "lost"), [("1+1+1", 1), ("2+1", 2), ("2+2", 1)])
def test_of_a_lost_host_the_part_takes_the_mean(hosts: str, lost: int) -> None:
    """Rank 1, or 2 alone on its host, with fragments on their way; in 2+2 nothing is lost."""
    shards = {}
    if hosts != "2+2":
        # Hosts own equal parts, and so do the ranks of a host.
        begin, end, parts = {"1+1+1": (1, 2, 3), "2+1": (1, 2, 2)}[hosts]
        shards = {n: slice(s * begin // parts, s * end // parts) for n, s in SIZES.items()}
    found = trained(hosts, streaming, {lost: 7})
    left = without(hosts, lost)
    check(found, Written(streamed, 3).run(size_of(hosts), 13, {7: Loss(left, shards)}))


class Waiting(outer.SGD):
    """An outer step that is taken once the worker says so."""

    def __init__(self) -> None:
        super().__init__(0.7, momentum=0.9, nesterov=True)
        self.goes_on = threading.Event()

    def scalar_step(self) -> None:
        return None

    def update(self, block: outer.Block) -> None:
        assert self.goes_on.wait(20), "the worker waits for a round in the background"
        super().update(block)


@pytest.mark.parametrize("hosts", ["1", "2+1"])
def test_who_holds_a_round_does_not_wait_for_what_it_sets_off(hosts: str) -> None:
    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(37)}, comm)
        optimizer = Waiting()
        averager = StreamingAverager(3, 1, comm, outer=optimizer, delay=2)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        for step in range(1, 6):
            if step == 5:
                optimizer.goes_on.set()
            arena.grad["x"] += 1
            training.step()

    run_threads(size_of(hosts), body, hosts=hosts, fault_tolerant=True)


@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_samples_of_what_was_given_up_weigh_in_the_next_round(hosts: str) -> None:
    """Rank 0 sees 1 sample in every step, rank 2, which holds the only 1, 30 and then 3.

    Rank 1 is lost in the last of 6 steps, when a round that left after the fourth was to arrive.
    """

    def body(comm: Communicator) -> float:
        me = comm.rank
        arena = Arena({"x": np.array([float(me == 2)])}, comm, start="keep")
        averager = StreamingAverager(4, 1, comm, delay=2)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        for step in range(1, 7):
            if (me, step) == (1, 6):
                raise KeyError
            averager.record_samples((me + 1) * (10 if (me, step) == (2, 1) else 1))
            training.step()
        training.flush()
        return float(arena["x"][0])

    found = run_threads(3, body, hosts=hosts, fault_tolerant=True)
    # 6 times 1; 30 and 5 times 3.
    assert found == [45 / 51] * 2


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_what_was_on_its_way_in_a_checkpoint_has_come_to_all(hosts: str) -> None:
    """Saved after step 6, with both fragments on their way.

    One arrives after step 7, the other after step 9 in spite of a loss in step 8.
    """
    size, kept = size_of(hosts), dict[int, Any]()

    def body(comm: Communicator, loads: bool) -> Any:
        me = comm.rank
        values = {name: np.arange(count, dtype=np.float64) for name, count in SIZES.items()}
        arena, averager = Arena(values, comm), streaming(comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        survival = Survival(training)
        if loads:
            arena.flat[...], state = kept[me]
            training.load_state_dict(state)
        for step in range(averager.step + 1, 14):
            if loads and (me, step) == (1, 8):
                raise KeyError
            for name in SIZES:
                arena.grad[name] += noise(me, step, name)
            training.step()
            if step == 6 and not loads:
                kept[me] = arena.flat.copy(), survival.hold(training.state_dict)
                return None
        training.flush()
        return np.concatenate([arena[name] for name in SIZES])

    run_threads(size, body, False, hosts=hosts, fault_tolerant=True)
    found = run_threads(size, body, True, hosts=hosts, fault_tolerant=True)
    assert len({values.tobytes() for values in found}) == 1
    loss = Loss(without(hosts, 1), come="b")
    check(found, Written(streamed, 3).run(size, 13, {8: loss}))


@pytest.mark.parametrize("hosts", ["2+2", "2+1", "1+1+1"])
def test_what_a_codec_keeps_is_as_if_the_round_had_not_left(hosts: str) -> None:
    """Closed form 11 of those that are left: rank 1 is lost while the first round is on its way.

    What is sent and unsent is all that they have moved. 1e-12 for rounding.
    """
    count = 37

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena, moved = Arena({"x": np.zeros(count)}, comm), np.zeros(count)
        averager = OverlappedAverager(4, 2, comm, compress=codecs.Sign(8))
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        for step in range(1, 12):
            if (me, step) == (1, 5):
                averager.state_dict()  # Waits until the round has ended in the background.
                raise KeyError
            gradient = np.random.default_rng([me, step]).normal(size=count)
            moved -= 0.1 * gradient
            arena.grad["x"] += gradient
            training.step()
        training.flush()
        (kept,) = averager.state_dict()["fragments"][0]["compression"]
        unsent, place = np.zeros(count), 0
        share = len(comm.topology.neighbours(comm.rank)) / comm.size
        for part in comm.held(count):
            length = part.stop - part.start
            unsent[part] += share * kept["unsent"]["values"][place : place + length]
            unsent[part] += kept["unsent"]["result"][place : place + length]
            place += length
        assert np.abs(unsent).max() > 1e-3
        return arena["x"].copy(), unsent, moved

    found = run_threads(size_of(hosts), body, hosts=hosts, fault_tolerant=True)
    total = found[0][0] + sum(unsent for _, unsent, _ in found)
    moved = sum(moved for *_, moved in found) / len(found)
    np.testing.assert_allclose(total, moved, rtol=1e-12, atol=1e-12)


JOB = """
import os, signal, sys
import localsgd
from test_streams import streaming, train

comm = localsgd.world(deadline_s=20.0)
me, victim, moment = comm.rank, int(sys.argv[1]), int(sys.argv[2])


def meet(step):
    if (me, step) == (victim, moment):
        os.kill(os.getpid(), signal.SIGKILL)


values = train(comm, streaming(comm), meet)
print("worker", me, values.tobytes().hex(), flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("hosts", "victim", "step"), [("3", 1, 7), ("2+1", 0, 8), ("2+2", 3, 5)])
def test_of_processes_that_are_killed_those_left_have_the_bits_of_threads(
    hosts: str, victim: int, step: int, tmp_path: Path
) -> None:
    job = tmp_path / "job.py"
    job.write_text(JOB)
    words = ["run", "--fault-tolerant", "-n", str(size_of(hosts)), "--layout", hosts, str(job)]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    ended = subprocess.run(
        [sys.executable, "-m", "localsgd.cli", *words, str(victim), str(step)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = [line.split() for line in ended.stdout.splitlines() if line.startswith("worker")]
    assert sorted(int(rank) for _, rank, _ in said) == without(hosts, victim)
    wanted = trained(hosts, streaming, {victim: step})[0].tobytes().hex()
    assert {values for *_, values in said} == {wanted}
