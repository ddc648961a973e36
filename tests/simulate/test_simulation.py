"""Simulated workers: the bits of all backends, and times worked out by hand.

Bandwidths and bytes are powers of two, so that seconds are exact.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from averager_kinds import FIRST_AND_LATER, KINDS, Kind, arenas, train
from localsgd import (
    Arena,
    Communicator,
    LocalSGD,
    OverlappedSGD,
    RankFailure,
    Survival,
    optim,
    run_threads,
)
from localsgd.simulate import Cluster, Faults, Link, Simulated, Stragglers, simulate

MIB_S = 8.0 * 2**20
HOST = Link("host", 1024 * MIB_S, 2.0**-20)
WAN = Link("wan", MIB_S, 0.25)
HEADER_BYTES = 96


def digest(comm: Communicator, kind: Kind) -> str:
    params = arenas(comm)
    averager = kind.make(comm)
    averager.begin(params)
    train(kind, averager, params, range(1, 10))
    return hashlib.sha256(b"".join(arena.flat.tobytes() for arena in params)).hexdigest()


@pytest.mark.parametrize("layout", ["1", "1+1", "2+1", "0,2/1", "2+2", "4"])
@pytest.mark.parametrize("name", FIRST_AND_LATER)
def test_every_averager_has_the_bits_of_threads(name: str, layout: str) -> None:
    workers = {"1": 1, "1+1": 2, "2+1": 3, "0,2/1": 3}.get(layout, 4)
    kind = KINDS[name]
    found = simulate(
        lambda comm: digest(comm, kind), workers=workers, hosts=layout, network=[HOST, WAN]
    )
    assert found.results == run_threads(workers, digest, kind, hosts=layout, deadline_s=30.0)


def test_a_round_between_hosts_takes_three_latencies_and_its_bytes() -> None:
    """Each of two hosts owns half of 2^16 bytes, 1/32 s on a link of 1 MiB/s.

    Headers cross first, then the halves that the other host owns, then what it made of them.
    """
    found = simulate(
        lambda comm: comm.allreduce(np.ones(2**14, np.float32), "mean"),
        workers=2,
        network=[WAN],
        step_time_s=0.0,
    )
    (held,) = found.rounds
    assert found.between_bytes - held.between_bytes == 2 * HEADER_BYTES
    assert (held.begin_s, held.met_s, held.workers) == (0.0, 0.0, 2)
    assert held.between_bytes == 2 * 2**16
    assert held.end_s == 3 * 0.25 + 2 / 32 + HEADER_BYTES / 2**20
    assert found.seconds == [held.end_s, held.end_s]


def test_workers_of_a_host_share_its_link() -> None:
    """Two workers of a host send a message each at once, of 96 KiB: 3/32 s each at 1 MiB/s."""

    def send(comm: Communicator) -> float:
        peer = (comm.rank + 2) % 4
        comm.sendrecv(np.ones(96 << 10, np.uint8), np.ones(96 << 10, np.uint8), peer, peer)
        return 0.0

    found = simulate(send, workers=4, hosts="2x2", network=[HOST, WAN], step_time_s=0.0)
    assert found.seconds == [0.25 + 3 / 32, 0.25 + 6 / 32] * 2


@pytest.mark.parametrize("workers", [2, 4])
def test_a_round_within_a_host_takes_what_a_plan_says(workers: int) -> None:
    def average(comm: Communicator) -> None:
        comm.allreduce(comm.allocate(2**15, np.float32), "mean")

    found = simulate(
        average, workers=workers, hosts=f"1x{workers}", network=[HOST], step_time_s=0.0
    )
    (held,) = found.rounds
    planned = Cluster(1, workers, HOST, None).round_of(2**15, np.float32)
    assert held.host_bytes == workers * planned.host_bytes
    assert held.end_s - held.met_s == planned.seconds


def local_sgd(comm: Communicator) -> None:
    params = Arena({"w": np.ones(8)}, comm)
    training = LocalSGD(optim.SGD(params, lr=0.1), period=1, comm=comm)
    for _ in range(7):
        training.step()


def overlapped(comm: Communicator) -> None:
    params = Arena({"w": np.ones(8)}, comm)
    training = OverlappedSGD(optim.SGD(params, lr=0.1), period=4, delay=2, comm=comm)
    for _ in range(7):
        training.step()


def test_a_straggler_delays_a_synchronous_round_by_exactly_its_delay() -> None:
    usual = simulate(local_sgd, workers=3, network=[WAN], step_time_s=1.0)
    late = simulate(local_sgd, workers=3, network=[WAN], step_time_s=1.0, stragglers={(1, 2): 5.0})
    met = [[held.met_s for held in found.rounds[-7:]] for found in (late, usual)]
    assert np.subtract(*met) == pytest.approx([0.0] + [5.0] * 6, abs=1e-9)
    assert np.subtract(late.seconds, usual.seconds) == pytest.approx([5.0] * 3)
    assert late.computed_s == [7.0, 12.0, 7.0]


def test_delayed_averaging_hides_a_straggler() -> None:
    """Rank 1 begins the round 1 s late; the others need it 2 s after they have begun it."""
    ways = [None, {(1, 2): 1.0}]
    usual, late = (
        simulate(overlapped, workers=3, network=[HOST], step_time_s=1.0, stragglers=stragglers)
        for stragglers in ways
    )
    assert late.seconds[0] == usual.seconds[0]
    assert late.seconds[2] == usual.seconds[2]
    assert late.seconds[1] == pytest.approx(usual.seconds[1] + 1.0)
    blocking = simulate(
        local_sgd, workers=3, network=[HOST], step_time_s=1.0, stragglers={(1, 2): 1.0}
    )
    assert blocking.seconds[0] > late.seconds[0] + 0.9


def test_a_slow_worker_takes_longer_for_every_step() -> None:
    found = simulate(local_sgd, workers=2, network=[HOST], step_time_s=1.0, speeds=[1.0, 0.5])
    assert found.computed_s == [7.0, 14.0]
    assert min(found.seconds) >= 14.0
    assert found.utilization == pytest.approx(0.75, abs=1e-3)


def test_times_are_those_of_the_seed() -> None:
    def times(seed: int) -> Simulated[None]:
        return simulate(
            local_sgd,
            workers=4,
            hosts="2x2",
            network="host=50GB/s,1us; wan=100Mbit/s,50ms",
            step_time_s=0.1,
            stragglers=Stragglers(0.3, 2.0),
            seed=seed,
        )

    first = times(1)
    with ExitStack() as files:
        for _ in range(100):
            files.enter_context(Path(os.devnull).open())
        assert times(1) == first, "times depend on the process's file numbers"
    assert first.seconds != times(2).seconds


def surviving(comm: Communicator) -> int:
    params = Arena({"w": np.ones(8)}, comm)
    training = LocalSGD(optim.SGD(params, lr=0.1), period=2, comm=comm)
    Survival(training)
    for _ in range(8):
        training.step()
    return comm.size


def test_others_go_on_without_a_worker_that_is_lost() -> None:
    found = simulate(surviving, workers=3, network=[HOST], step_time_s=1.0, faults={1: 4.5})
    assert found.results == [2, 2]
    assert dict(found.lost) == {1: 4.5}


def test_faults_are_those_of_the_seed() -> None:
    def lost(seed: int) -> dict[int, float]:
        found = simulate(
            surviving, workers=4, network=[HOST], step_time_s=1.0, faults=Faults(16.0), seed=seed
        )
        return dict(found.lost)

    assert lost(3) == lost(3)
    assert len({tuple(lost(seed).items()) for seed in range(4)}) > 1


def test_what_a_worker_raises_is_raised() -> None:
    def fails(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("of rank 1")
        comm.barrier()

    with pytest.raises(KeyError, match="of rank 1"):
        simulate(fails, workers=3, network=[WAN])


def test_workers_that_wait_for_one_another_are_told_that_nobody_can_go_on() -> None:
    def waits(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.barrier()
        else:
            comm.sendrecv(np.ones(1), np.ones(1), 0, 0)

    with pytest.raises(RankFailure, match="nobody can go on"):
        simulate(waits, workers=2, network=[WAN])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"hosts": "2x3"}, "hosts must hold 4 ranks"),
        ({"network": [HOST]}, "network must have two levels for hosts 2[+]2"),
        ({"speeds": [1.0]}, "speeds must have one for each of 4 workers, got 1"),
        ({"speeds": [1.0, 0.0, 1.0, 1.0]}, "the speed of rank 1 must be above 0"),
        ({"step_time_s": -1.0}, "step_time_s must be at least 0"),
        ({"faults": {4: 1.0}}, "faults must name ranks from 0 to 3, got 4"),
        ({"stragglers": {(9, 1): 1.0}}, "stragglers must name ranks from 0 to 3, got 9"),
    ],
)
def test_what_does_not_fit_is_an_error(given: dict[str, object], words: str) -> None:
    usual = {"workers": 4, "hosts": "2x2", "network": [HOST, WAN]}
    with pytest.raises(ValueError, match=words):
        simulate(local_sgd, **{**usual, **given})  # type: ignore[arg-type]
