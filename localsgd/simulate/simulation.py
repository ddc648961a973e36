"""A training function on simulated workers: the library's own code under a virtual clock.

Every worker is a thread with the communicator of all backends, so that the bits are those of any
other backend with the same layout of hosts. Only time is a model: ``worker.py`` has that of steps,
``roads.py`` that of messages and memory, ``turns.py`` the order in which things happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from localsgd.checks import checked_count, checked_number
from localsgd.comm import Communicator, Topology, connect
from localsgd.comm.group import Group
from localsgd.comm.transports import NewThread, ThreadTransport, run_workers
from localsgd.simulate.cluster import counts_of
from localsgd.simulate.links import Link, parse_network
from localsgd.simulate.mishaps import SomeFaults, SomeStragglers, delay_of, lost_at
from localsgd.simulate.post import Post
from localsgd.simulate.roads import Roads
from localsgd.simulate.rounds import Held, Rounds
from localsgd.simulate.turns import Actor, Stage
from localsgd.simulate.worker import Worker

Result = TypeVar("Result")


@dataclass(frozen=True)
class Simulated(Generic[Result]):
    """What came of a simulation. Seconds are virtual, and count from when all workers had met.

    Attributes:
        results: what the function returned on every worker, by rank; of those that were not lost.
        lost: when each worker was lost that was, by rank.
        seconds: when each worker ended, by rank.
        computed_s: how much of that its steps took, by rank.
        rounds: every collective that moved parameters, in the order in which they ended.
        host_bytes: that all workers together read and wrote of others' memory on their host.
        between_bytes: that hosts sent to each other, headers included.
    """

    results: list[Result]
    lost: Mapping[int, float]
    seconds: Sequence[float]
    computed_s: Sequence[float]
    rounds: Sequence[Held]
    host_bytes: int
    between_bytes: int

    @property
    def utilization(self) -> float:
        """The part of all workers' time in which they computed; 1 if it took none."""
        total = sum(self.seconds)
        return sum(self.computed_s) / total if total else 1.0


def simulate(
    function: Callable[[Communicator], Result],
    *,
    workers: int,
    network: str | Sequence[Link],
    hosts: str | None = None,
    step_time_s: float | None = None,
    speeds: Sequence[float] | None = None,
    stragglers: SomeStragglers = None,
    faults: SomeFaults = None,
    seed: int = 0,
) -> Simulated[Result]:
    """Runs ``function(comm)`` on simulated workers.

    Workers are threads of this process which take turns, so that what they share in Python (global
    random numbers, say) they share here, too. Local steps are those that averagers count.

    Args:
        workers: how many.
        network: the level within hosts and that between them, as ``parse_network`` has them; or
            the one of them that is used.
        hosts: hosts times workers of each, as in ``"32x8"``, or workers of each, as in ``"2+1"``;
            None for a host of its own for each worker.
        step_time_s: of a local step, in seconds; None takes the time of the processor that this
            machine spends between collectives, which differs from run to run.
        speeds: of every worker, by rank, as a multiple of that of an equal one; 0.5 takes twice as
            long.
        stragglers: what delays steps: ``Stragglers``, or seconds by rank and step from 1.
        faults: when workers are lost: ``Faults``, or seconds by rank. Once a worker has computed
            for so long it ends, and the others may ``shrink``, as in a fault-tolerant job.
        seed: of stragglers and faults.

    Raises:
        TypeError, ValueError: for an argument that is out of range, or does not fit the workers.
        Exception: the first that a worker raised; with ``faults``, if none is left.
    """
    checked_count("workers", workers, at_least=1)
    topology = topology_of(workers, hosts)
    links = parse_network(network) if isinstance(network, str) else network
    if step_time_s is not None:
        checked_number("step_time_s", step_time_s)
    speeds = _checked_speeds(speeds, workers)
    if isinstance(stragglers, Mapping):
        _require_workers("stragglers", (rank for rank, _ in stragglers), workers)
    if isinstance(faults, Mapping):
        _require_workers("faults", faults, workers)
    stage, roads, rounds = Stage(), Roads(topology, links), Rounds()
    made = [
        Worker(
            Actor(rank, topology.host_of[rank]),
            stage,
            roads,
            rounds,
            step_time_s,
            speeds[rank],
            delay_of(stragglers, seed, rank),
            lost_at(faults, seed, rank),
        )
        for rank in range(workers)
    ]
    actors = {rank: worker.actor for rank, worker in enumerate(made)}
    post = Post(actors, stage, roads, fault_tolerant=faults is not None)
    ended = [0.0] * workers

    def work(comm: Communicator) -> Result:
        rank = comm.rank
        post.joined.add(rank)
        worker = made[rank]
        worker.start(comm.progress)
        try:
            result = function(comm)
            worker.compute()
            return result
        finally:
            ended[rank] = stage.now

    def connected(transport: ThreadTransport | NewThread) -> Group:
        return connect(transport, hosts=str(topology), pace=made[transport.rank])

    for actor in actors.values():
        stage.add(actor)
    stage.begin()
    results = run_workers(post, connected, work)
    held = rounds.held()
    return Simulated(
        [results[rank] for rank in sorted(results)],
        {rank: ended[rank] for rank in range(workers) if rank not in results},
        ended,
        [worker.computed_s for worker in made],
        held,
        sum(each.host_bytes for each in held),
        roads.sent_bytes,
    )


def topology_of(workers: int, hosts: str | None) -> Topology:
    """The layout that ``hosts`` means for so many workers.

    Raises:
        ValueError: if there is none, or it has another number of workers.
    """
    if hosts is None:
        return Topology.of([[rank] for rank in range(workers)])
    if "x" in hosts:
        count, each = counts_of(hosts)
        hosts = "+".join([str(each)] * count)
    return Topology.parse(hosts, workers)


def _checked_speeds(speeds: Sequence[float] | None, workers: int) -> Sequence[float]:
    if speeds is None:
        return [1.0] * workers
    if len(speeds) != workers:
        raise ValueError(f"speeds must have one for each of {workers} workers, got {len(speeds)}")
    for rank, speed in enumerate(speeds):
        if checked_number(f"the speed of rank {rank}", speed) == 0:
            raise ValueError(f"the speed of rank {rank} must be above 0, got 0")
    return speeds


def _require_workers(name: str, ranks: Iterable[int], workers: int) -> None:
    for rank in ranks:
        if not 0 <= rank < workers:
            raise ValueError(f"{name} must name ranks from 0 to {workers - 1}, got {rank}")
