"""Groups that take in workers: threads and processes that are started while others work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from localsgd import Communicator, MismatchError, RankFailure, run_threads, solo
from oracle import same_bits, two_level_mean

COUNT, LIMIT_S = 1001, 60


def values(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).normal(size=COUNT).astype(np.float32)


def grown(comm: Communicator, count: int = 1) -> None:
    """Takes in so many workers, on the side of those that are there."""
    if comm.rank == 0:
        comm.summon(count)
    for _ in range(count):
        while comm.grow(lambda offer: "") is None:
            pass


@pytest.mark.parametrize(
    ("size", "hosts", "lost", "after"),
    [
        (1, "1", [], "2"),
        (2, "2", [1], "2"),
        (3, "3", [0], "3"),
        (4, "2+2", [1], "0,3/1,2"),
        (4, "3+1", [3], "3+1"),
        (4, "3+1", [0, 2], "0,2,3/1"),
        (3, "1+1+1", [1], "1+1+1"),
        (2, "2", [], "3"),
    ],
)
def test_a_group_takes_in_workers(size: int, hosts: str, lost: list[int], after: str) -> None:
    """The same object and memory, with the bits of a group of this layout made at once."""

    def body(comm: Communicator) -> tuple[int, int]:
        joining, before = comm.joining, comm.rank
        shared = comm.allocate(COUNT, np.float32)
        view = shared[:10]
        if joining:
            assert comm.size == 1
            comm.allreduce(shared, "mean")
            change = comm.join("hello")
            before = comm.rank
        else:
            comm.allreduce(shared, "mean")
            if before in lost:
                raise KeyError(f"rank {before}")
            if lost:
                with pytest.raises(RankFailure):
                    comm.barrier()
                comm.shrink()
            grown(comm, max(1, len(lost)))
            assert comm.size == comm.topology.size == size - len(lost) + max(1, len(lost))
        while joining and comm.size < size - len(lost) + max(1, len(lost)):
            comm.grow(lambda offer: "")
        if joining:
            assert change.grown
        assert str(comm.topology) == after
        for again in (False, True):
            if again:
                comm.map_again(shared)
            shared[...] = values(comm.rank)
            comm.allreduce(shared, "mean")
            wanted = two_level_mean(
                [values(rank) for rank in range(comm.size)], [1.0] * comm.size, comm.topology
            )
            assert same_bits(shared, wanted)
            assert view.base is not None and np.shares_memory(view, shared)
        half = comm.split(comm.rank % 2)
        assert half.collect(comm.rank) == list(range(comm.rank % 2, comm.size, 2))
        return comm.rank, comm.size

    found = run_threads(size, body, hosts=hosts, fault_tolerant=True, respawn=True)
    # Of two that are started at once either may come first.
    assert sorted(found) == [(rank, len(found)) for rank in range(len(found))]


def test_a_buffer_that_is_mapped_again_is_read_where_it_lies() -> None:
    """And one that is not is copied, with the same bits."""

    def body(comm: Communicator) -> bool:
        first, second = comm.allocate(1 << 16, np.float32), comm.allocate(1 << 16, np.float32)
        if comm.joining:
            comm.join(None)
        else:
            grown(comm)
        comm.map_again(first)
        before = comm.traffic.host_read
        comm.allreduce(first, "mean")
        mapped = comm.traffic.host_read - before
        comm.allreduce(second, "mean")
        return mapped > 0

    assert run_threads(2, body, fault_tolerant=True, respawn=True) == [True] * 3


def test_who_is_refused_is_told_and_the_others_go_on() -> None:
    def body(comm: Communicator) -> int:
        if comm.joining:
            with pytest.raises(MismatchError, match="refuse this worker: not a letter: 3"):
                comm.join(3)
            raise KeyError
        if comm.rank == 0:
            comm.summon(1)
        done = False
        while not done:
            assert comm.grow(lambda offer: f"not a letter: {offer}") is None
            done = comm.collect(comm.rank == 0 and not comm.summoned)[0]
        return comm.size

    assert run_threads(2, body, fault_tolerant=True, respawn=True) == [2, 2]


@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_a_worker_that_ends_as_it_joins_leaves_the_others_as_they_were(hosts: str) -> None:
    """They shrink, and are who they were; then another joins."""
    ends = [True]

    def body(comm: Communicator) -> tuple[int, str]:
        shared = comm.allocate(COUNT, np.float32)
        if comm.joining:
            comm.join(None)
            if ends.pop() if ends else False:
                raise KeyError
        else:
            before = str(comm.topology)
            grown(comm)
            with pytest.raises(RankFailure):
                comm.barrier()
            change = comm.shrink()
            assert change.numbers == (0, 1) and change.lost == (2,)
            assert str(comm.topology) == before
            grown(comm)
        comm.map_again(shared)
        shared[...] = comm.rank
        comm.allreduce(shared, "sum")
        assert shared.tolist() == [3.0] * COUNT
        return comm.rank, str(comm.topology)

    found = run_threads(2, body, hosts=hosts, fault_tolerant=True, respawn=True)
    after = {"2": "3", "1+1": "0,2/1"}[hosts]
    assert found == [(rank, after) for rank in range(3)]


def test_a_job_that_was_not_started_for_it_says_so() -> None:
    def body(comm: Communicator) -> None:
        assert not (comm.growable or comm.joining or comm.summoned)
        with pytest.raises(ValueError, match=r"run_threads\(fault_tolerant=True, respawn=True\)"):
            comm.grow(lambda offer: "")
        with pytest.raises(ValueError, match="must have been started to join others"):
            comm.join(None)

    run_threads(2, body, fault_tolerant=True)
    body(solo())
    with pytest.raises(ValueError, match="respawn must be of a fault-tolerant run"):
        run_threads(2, body, respawn=True)


def test_a_worker_whose_others_have_ended_ends() -> None:
    def body(comm: Communicator) -> int:
        if comm.joining:
            with pytest.raises(RankFailure, match="are no more"):
                comm.join(None)
            raise KeyError
        if comm.rank == 0:
            comm.summon(1)
        return comm.size

    assert run_threads(2, body, fault_tolerant=True, respawn=True) == [2, 2]


PROGRAM = """
import os, signal, sys, time
import numpy as np
import localsgd

how = sys.argv[1]
comm = localsgd.world(deadline_s=20)
shared = comm.allocate(100_000, np.float32)
comm.allreduce(shared, "mean")
turns = 0


def grow():
    while comm.grow(lambda offer: "") is None:
        time.sleep(0.01)


if comm.joining:
    assert comm.size == 1
    if how == "an error":
        raise KeyError("no such file")
    if how == "late":
        time.sleep(60)
    comm.join("hello")
    if how == "killed behind" and not os.path.exists(sys.argv[2]):
        open(sys.argv[2], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
else:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        comm.barrier()
    except localsgd.RankFailure as error:
        comm.shrink()
    if comm.rank == 0:
        comm.summon(1)
    if how in ("an error", "late"):
        # Nobody comes; the rest end.
        while comm.collect(how == "an error" and comm.rank == 0 and comm.summoned > 0)[0]:
            assert comm.grow(lambda offer: "") is None
            time.sleep(0.01)
        if comm.rank == 0:
            print("left:", comm.size, flush=True)
        sys.exit()
    grow()
    if how == "killed behind":
        try:
            while True:
                comm.barrier()
        except localsgd.RankFailure:
            comm.shrink()
        if comm.rank == 0:
            comm.summon(1)
        grow()
comm.map_again(shared)
shared[...] = comm.rank
comm.allreduce(shared, "sum")
if comm.rank == 0:
    print("all:", comm.size, comm.topology, shared[0], flush=True)
comm.barrier()
"""


def run_job(words: list[object], ranks: int, layout: str) -> tuple[int, str]:
    """Exit code and output of a job that may lose ranks and take in others."""
    command = [sys.executable, "-m", "localsgd.cli", "run", "--fault-tolerant", "--respawn"]
    ended = subprocess.run(
        [*command, "-n", str(ranks), "--layout", layout, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    ("layout", "how"),
    [
        ("2", "well"),
        ("2+1", "well"),
        ("2+2", "well"),
        ("3+1", "killed behind"),
        ("2+2", "killed behind"),
        ("3", "an error"),
        ("3", "late"),
    ],
)
def test_a_process_joins_a_job(tmp_path: Path, layout: str, how: str) -> None:
    """Ranks 0 to n - 1 on the hosts that there were, in shared memory; the sum of their numbers."""
    script = tmp_path / "job.py"
    script.write_text(PROGRAM)
    size = sum(map(int, layout.split("+")))
    code, output = run_job([script, how, tmp_path / "struck"], size, layout)
    assert code == 0, output
    if how in ("an error", "late"):
        assert f"left: {size - 1}" in output
        assert ("a worker started later raised" in output) == (how == "an error")
        return
    after = {"2": "2", "2+1": "0,2/1", "2+2": "0,3/1,2", "3+1": "0,1,3/2", "3": "3"}[layout]
    total = float(sum(range(size)))
    assert f"all: {size} {after} {total}" in output
