"""Workers that are started in the place of lost ones, and join with what the others have."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    MismatchError,
    ModelAverager,
    OverlappedAverager,
    PostLocalSGDOptimizer,
    ShardSampler,
    StreamingAverager,
    Survival,
    codecs,
    every,
    gossip,
    optim,
    outer,
    run_threads,
)

COUNT, LIMIT_S = 37, 30.0


def noise(rank: int, step: int) -> Any:
    return np.random.default_rng([rank, step]).normal(size=COUNT)


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


def made(comm: Communicator, outside: Any = None) -> tuple[Arena, PostLocalSGDOptimizer]:
    arena = Arena({"x": np.arange(COUNT, dtype=np.float64)}, comm)
    averager = ModelAverager(every(2), comm, outer=outside)
    return arena, PostLocalSGDOptimizer(optim.Adam(arena, lr=0.1), averager)


def trained(
    comm: Communicator,
    size: int,
    steps: int,
    lost: Callable[[int, int], bool],
    outside: Any = None,
    *parts: Any,
) -> dict[str, Any]:
    """Trains until all have taken ``steps`` steps with ``size`` workers there again.

    All do the same, whoever they are, so that replicas are what one worker alone would be.
    """
    me = -1 if comm.joining else comm.rank
    arena, training = made(comm, outside)
    survival = Survival(training, *parts)
    begun, last, deadline = training.averager.step, 0, time.monotonic() + LIMIT_S
    while not last or training.averager.step < last:
        step = training.averager.step + 1
        if not last and step % 2 == 1:
            # All find in the same step that they are all here.
            sizes = survival.hold(lambda: comm.collect(comm.size))
            last = step + 3 if step > steps and len(sizes) == size else 0
        if lost(me, step):
            raise KeyError
        arena.grad.flat[...] = noise(0, step)
        training.step()
        assert time.monotonic() < deadline
    return {
        "flat": arena.flat.copy(),
        "optim": training.optim.state_dict(),
        "step": training.averager.step,
        "begun": begun,
        "joined": survival.joined,
        "lost": survival.lost,
        "size": comm.size,
        "rank": comm.rank,
        "hosts": str(comm.topology),
    }


def undisturbed(steps: int, outside: Any) -> tuple[Any, Any]:
    """Parameters and state of a worker alone, to which nothing happens."""

    def body(comm: Communicator) -> tuple[Any, Any]:
        arena, training = made(comm, outside)
        for step in range(1, steps + 1):
            arena.grad.flat[...] = noise(0, step)
            training.step()
        return arena.flat.copy(), training.optim.state_dict()

    return run_threads(1, body)[0]


@pytest.mark.parametrize(
    ("hosts", "gone"),
    [("2", [1]), ("3", [0]), ("4", [1, 2]), ("2+2", [1]), ("3+1", [2])],
)
@pytest.mark.parametrize("outside", [None, nesterov])
def test_who_joins_is_as_the_others_and_nothing_is_lost(
    hosts: str, gone: list[int], outside: Any
) -> None:
    """Parameters, Adam's moments, anchor and momentum are those of an undisturbed copy."""
    size = sum(map(int, hosts.split("+")))
    outside = outside or (lambda: None)

    def body(comm: Communicator) -> Any:
        return trained(comm, size, 12, lambda me, step: me in gone and step == 5, outside())

    found = run_threads(size, body, hosts=hosts, fault_tolerant=True, respawn=True)
    assert len(found) == size
    assert sorted(one["rank"] for one in found) == list(range(size))
    assert [one["joined"] for one in found] == [False] * (size - len(gone)) + [True] * len(gone)
    steps = found[0]["step"]

    flat, state = undisturbed(steps, outside())
    for one in found:
        assert one["step"] == steps and one["lost"] == len(gone) and one["size"] == size
        assert (one["begun"] > 0) == one["joined"]
        np.testing.assert_allclose(one["flat"], flat, rtol=1e-12)
        assert one["flat"].tobytes() == found[0]["flat"].tobytes()
        assert repr(one["optim"]) == repr(state)


@pytest.mark.long
@pytest.mark.parametrize(
    ("hosts", "gone"),
    [("1+1", [1]), ("2+1", [2]), ("2+2", [1]), ("2+2", [2, 3]), ("1+1+1", [0]), ("3+1", [2])],
)
@pytest.mark.parametrize("codec", [codecs.FLOAT16, codecs.Sign()], ids=lambda c: c.name)
def test_rounds_are_compressed_again_when_others_have_joined(
    hosts: str, gone: list[int], codec: Any
) -> None:
    """All agree on what they hold, and send as many bytes as a job that has lost nobody."""
    size = sum(map(int, hosts.split("+")))

    def body(comm: Communicator, gone: list[int]) -> Any:
        me = -1 if comm.joining else comm.rank
        arena = Arena({"x": np.arange(COUNT, dtype=np.float32)}, comm)
        averager = ModelAverager(every(2), comm, compress=codec)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        survival, left, deadline = Survival(training), 0, time.monotonic() + LIMIT_S
        digests: list[bytes] = []
        sent: list[int] = []
        while left != 1:
            step = averager.step + 1
            left -= left > 0
            if me in gone and step == 6:
                raise KeyError
            if not left and step % 2 == 1:
                here = survival.hold(lambda: comm.collect(averager.step >= 12))
                left = 41 if all(here) and len(here) == size else 0
            arena.grad.flat[...] = arena.flat + np.float32(0.1) * noise(comm.rank, step)
            before, rounds = comm.traffic.sent, averager.rounds
            training.step()
            if averager.rounds > rounds and left:
                digests.append(arena.flat.tobytes())
                sent.append(comm.traffic.sent - before)
            assert time.monotonic() < deadline
        return digests, sum(sent), float(np.abs(arena.flat).max())

    totals = []
    for lost in ([], gone):
        found = run_threads(size, body, lost, hosts=hosts, fault_tolerant=True, respawn=True)
        assert len(found) == size and all(len(digests) == 20 for digests, _, _ in found)
        assert len({tuple(digests) for digests, _, _ in found}) == 1
        assert all(farthest < 1.0 for _, _, farthest in found)
        totals.append(sum(sent for _, sent, _ in found))
    assert totals[0] == totals[1] > 0


OTHERS: dict[str, Callable[[Communicator], ModelAverager]] = {
    "streaming": lambda comm: StreamingAverager(4, 2, comm, outer=nesterov(), delay=3, mixing=0.5),
    "streaming, compressed": lambda comm: StreamingAverager(
        4, 2, comm, outer=nesterov(), delay=3, compress=codecs.FLOAT16
    ),
    "delayed": lambda comm: OverlappedAverager(4, 2, comm, outer=nesterov()),
    "hierarchical": lambda comm: HierarchicalModelAverager({2: "host", 4: "world"}, comm=comm),
    "d-psgd": lambda comm: gossip.GossipAverager(every(2), gossip.ring(), comm),
    "push-sum": lambda comm: gossip.PushSumAverager(every(2), gossip.one_peer_exponential(), comm),
    "choco": lambda comm: gossip.ChocoAverager(every(2), gossip.ring(), codecs.FLOAT16, 0.3, comm),
    "noloco": lambda comm: gossip.NoLoCoAverager(every(2), comm),
}


@pytest.mark.parametrize("hosts", ["3", "2+1", "1+1+1"])
@pytest.mark.parametrize("alike", [True, False], ids=["alike", "apart"])
@pytest.mark.parametrize("name", OTHERS)
def test_who_joins_takes_part_in_every_kind_of_round(name: str, alike: bool, hosts: str) -> None:
    """Who have the same samples are alike after every step; others have drifted apart by then.

    All are alike to the bit after a flush. Rounds are on their way when it joins.
    """

    def body(comm: Communicator) -> Any:
        me, deadline = -1 if comm.joining else comm.rank, time.monotonic() + LIMIT_S
        arena = Arena({x: np.arange(COUNT, dtype=np.float32) for x in "xy"}, comm)
        averager = OTHERS[name](comm)
        training = PostLocalSGDOptimizer(optim.Adam(arena, lr=0.1), averager)
        survival, last, flats = Survival(training), 0, list[bytes]()
        while not last or averager.step < last:
            step = averager.step + 1
            if not last and step % 4 == 1:
                sizes = survival.hold(lambda: comm.collect(comm.size))
                last = step + 11 if step > 12 and len(sizes) == 3 else 0
            if (me, step) == (1, 6):
                raise KeyError
            for part, values in enumerate(arena.grad.values()):
                values[...] = arena["xy"[part]] + noise(
                    0 if alike else 1 + comm.rank, 2 * step + part
                )
            training.step()
            assert time.monotonic() < deadline
            if alike and last:
                flats.append(arena.flat.tobytes())
        far = float(np.abs(arena.flat).max())
        training.flush()
        flats.append(arena.flat.tobytes())
        return survival.joined, averager.step, comm.size, far, tuple(flats[-10:])

    found = run_threads(3, body, hosts=hosts, fault_tolerant=True, respawn=True)
    assert [joined for joined, *_ in found] == [False, False, True]
    assert {(step, size) for _, step, size, *_ in found} == {(found[0][1], 3)}
    assert len({flats for *_, flats in found}) == 1 and all(far < 40 for *_, far, _ in found)


class Mortal:
    """A part that ends who joins, once, when it comes to its groups."""

    def __init__(self, comm: Communicator, ends: list[bool]) -> None:
        self._comm, self._is_new, self._ends = comm, comm.joining, ends

    def regroup(self) -> None:
        if self._is_new and self._ends:
            self._ends.pop()
            raise KeyError("in the join")


@pytest.mark.parametrize("hosts", ["2", "1+2", "2+2"])
def test_a_worker_lost_as_it_joins_leaves_the_others_as_they_were(hosts: str) -> None:
    """It has come so far that the anchor was dealt out anew; another joins in its place."""
    ends = [True]
    size = sum(map(int, hosts.split("+")))

    def body(comm: Communicator) -> Any:
        return trained(
            comm, size, 12, lambda me, step: (me, step) == (1, 5), nesterov(), Mortal(comm, ends)
        )

    found = run_threads(size, body, hosts=hosts, fault_tolerant=True, respawn=True)
    assert len(found) == size and not ends
    flat, state = undisturbed(found[0]["step"], nesterov())
    for one in found:
        assert one["flat"].tobytes() == found[0]["flat"].tobytes() and one["size"] == size
        assert one["lost"] == 1
        np.testing.assert_allclose(one["flat"], flat, rtol=1e-12)
        assert repr(one["optim"]) == repr(state)


def test_a_worker_is_lost_as_another_joins() -> None:
    """A rank that was there raises in the join: those that are left finish it, and replace it."""
    ends = [True]

    class Old(Mortal):
        def regroup(self) -> None:
            if not self._is_new and self._ends and self._comm.size > 2:
                self._ends.pop()
                raise KeyError("while another joins")

    def body(comm: Communicator) -> Any:
        part = Old(comm, ends if comm.rank == 2 else [])
        return trained(comm, 3, 12, lambda me, step: (me, step) == (1, 5), nesterov(), part)

    found = run_threads(3, body, fault_tolerant=True, respawn=True)
    assert len(found) == 3 and not ends
    flat, _ = undisturbed(found[0]["step"], nesterov())
    for one in found:
        assert one["lost"] == 2 and one["flat"].tobytes() == found[0]["flat"].tobytes()
        np.testing.assert_allclose(one["flat"], flat, rtol=1e-12)


def test_who_differs_is_refused_and_the_others_go_on() -> None:
    """It is told what differs; after three such nobody else is started."""
    said: list[str] = []

    def body(comm: Communicator) -> int:
        count = COUNT + comm.joining
        arena = Arena({"x": np.zeros(count)}, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), ModelAverager(every(2), comm))
        me = comm.rank
        if comm.joining:
            with pytest.raises(MismatchError) as told:
                Survival(training)
            said.append(str(told.value))
            raise KeyError
        survival, deadline = Survival(training), time.monotonic() + LIMIT_S
        while survival.hold(lambda: comm.collect(len(said)))[0] < 3:
            if (me, training.averager.step) == (1, 5):
                raise KeyError
            training.step()
            assert time.monotonic() < deadline
        training.step()
        return comm.size

    assert run_threads(3, body, fault_tolerant=True, respawn=True) == [2, 2]
    assert len(said) == 3
    layout = "got parameter 'x' float64[38], not parameter 'x' float64[37]"
    assert all(layout in text for text in said), said


def test_the_data_is_dealt_to_all_again() -> None:
    """Every sample is dealt once, but for the turns that one missed from its loss to the round."""

    def body(comm: Communicator) -> Any:
        me = -1 if comm.joining else comm.rank
        _, training = made(comm)
        sampler = ShardSampler(3000, 2, seed=0, comm=comm)
        survival = Survival(training, sampler)
        seen = {}
        for batch in sampler:
            if (me, training.averager.step) == (1, 5):
                raise KeyError
            seen[training.averager.step] = batch.tolist(), comm.rank, comm.size
            training.step()
        return seen, survival.joined

    found = run_threads(3, body, fault_tolerant=True, respawn=True)
    assert [joined for _, joined in found] == [False, False, True]
    first = min(found[2][0])
    by_step = [[seen[step] for seen, _ in found if step in seen] for step in found[0][0]]
    dealt = [sample for of_step in by_step for batch, _, _ in of_step for sample in batch]
    # Six turns of one, of two samples each.
    assert len(set(dealt)) == len(dealt) == 3000 - 12
    for step, of_step in enumerate(by_step):
        size = 3 if step < 5 or step >= first else 2
        if step != 5 and step < len(by_step) - 1:
            assert {size_then for _, _, size_then in of_step} == {size}
            assert len(of_step) == (2 if step < first else 3)


def test_workers_are_added_to_a_job_that_runs() -> None:
    def body(comm: Communicator) -> Any:
        arena, training = made(comm, nesterov())
        survival, deadline = Survival(training), time.monotonic() + LIMIT_S
        while survival.hold(lambda: comm.collect(comm.size)) != [4] * 4:
            if training.averager.step == 4:
                survival.grow(2)
            training.step()
            training.step()
            assert time.monotonic() < deadline
        return comm.rank, survival.lost, arena.flat.tobytes()

    found = run_threads(2, body, fault_tolerant=True, respawn=True)
    # Of two that are started at once either may come first.
    assert sorted(one[:2] for one in found) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert len({one[2] for one in found}) == 1


PROGRAM = """
import os, signal, sys, time
import numpy as np
import localsgd
from localsgd import Arena, Checkpoints, DiLoCo, ShardSampler, Survival, every, optim

folder, kill = sys.argv[1], int(sys.argv[2])
comm = localsgd.world(deadline_s=20)
me = comm.rank
params = Arena({"w": np.zeros(1000, np.float32)}, comm)
training = DiLoCo(optim.AdamW(params, lr=0.01), 4, comm=comm)
sampler = ShardSampler(100_000, 10, seed=0, comm=comm)
saves = Checkpoints(folder, {"training": training}, comm=comm, when=every(6), keep=2)
saves.load()
survival = Survival(training, sampler, saves)
last, deadline = 0, time.monotonic() + 40
for batch in sampler:
    if not last and training.averager.step % 4 == 0:
        sizes = survival.hold(lambda: comm.collect([comm.size, survival.lost]))
        last = training.averager.step + 20 if sizes == [[4, kill]] * 4 else 0
    if not survival.joined and me > 0 and me <= kill and training.averager.step == 4 * me + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    params.grad["w"] += params["w"] - batch.mean() / 1e5
    training.step()
    survival.hold(lambda: saves.after(training.averager.step))
    time.sleep(0.005)
    if training.averager.step == last:
        break
    assert time.monotonic() < deadline
training.flush()
saves.close()
digests = comm.collect([params["w"].tobytes().hex()[:64], training.averager.step, sampler.position])
assert digests == digests[:1] * 4, digests
if comm.rank == 0:
    print("ended:", comm.size, comm.topology, survival.lost, training.averager.step, flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("layout", "kill"), [("4", 1), ("2+2", 2), ("3+1", 2), ("1+1+1+1", 1)])
def test_a_job_has_all_its_workers_again(tmp_path: Path, layout: str, kill: int) -> None:
    script = tmp_path / "job.py"
    script.write_text(PROGRAM)
    words = ["run", "--fault-tolerant", "--respawn", "-n", "4", "--layout", layout]
    ended = subprocess.run(
        [sys.executable, "-m", "localsgd.cli", *words, script, tmp_path / "saves", str(kill)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert "ended: 4 " in output and output.count("localsgd: lost ") == kill, output
