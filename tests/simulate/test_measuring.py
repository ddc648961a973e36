"""Measuring on real groups: which levels there are, the same on every rank, of plausible times."""

from __future__ import annotations

import pytest

from localsgd import Communicator, run_threads, solo
from localsgd.simulate import Machine, measure

pytestmark = pytest.mark.long

LARGEST = 1 << 18


def found(size: int, hosts: str) -> Machine:
    def work(comm: Communicator) -> Machine:
        return measure(comm, largest_bytes=LARGEST)

    machines = run_threads(size, work, hosts=hosts)
    assert machines == [machines[0]] * size
    return machines[0]


@pytest.mark.parametrize(
    ("hosts", "levels"),
    [
        ("2", [("host", 2)]),
        ("1+1", [("between", 2)]),
        ("1+1+1", [("between", 3)]),
        ("2+2", [("host", 2), ("between", 2)]),
        ("1+2", [("host", 2), ("between", 2)]),
        ("0,2/1,3", [("host", 2), ("between", 2)]),
    ],
)
def test_levels_with_several_ends_are_measured(hosts: str, levels: list[tuple[str, int]]) -> None:
    """Of uneven hosts the largest; every rank is told the same."""
    ranks = hosts.replace("/", "+").split("+")
    workers = [len(x.split(",")) if "," in x else int(x) for x in ranks]
    machine = found(sum(workers), hosts)
    assert machine.workers == tuple(workers)
    assert [(level.name, level.ends) for level in machine.levels] == levels
    for level in machine.levels:
        assert level.payload_bytes == (4_096, LARGEST // 2, LARGEST)
        assert all(seconds > 0 for seconds in level.seconds)
    assert machine.payload_bytes == LARGEST and machine.seconds > 0 and machine.free_bytes > 0


def test_what_begins_is_reported() -> None:
    def work(comm: Communicator) -> list[str]:
        heard: list[str] = []
        measure(comm, largest_bytes=LARGEST, report=heard.append)
        return heard

    heard = ["memory within hosts", "links between hosts", "all workers"]
    assert run_threads(2, work) == [heard, heard]


def test_one_worker_has_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="at least 2 workers to measure, got 1"):
        measure(solo())


def test_payloads_must_be_large_enough() -> None:
    def work(comm: Communicator) -> None:
        with pytest.raises(ValueError, match="largest_bytes must be at least 65536, got 4096"):
            measure(comm, largest_bytes=4_096)

    run_threads(2, work)
