"""Groups that go on without ranks that are lost: threads that raise, processes that die."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from localsgd import Communicator, RankFailure, run_threads, solo
from oracle import same_bits, two_level_mean

LIMIT_S = 60


def run_job(words: Sequence[object], ranks: int, layout: str) -> tuple[int, str]:
    """Exit code and output of a job that may lose ranks."""
    command = [sys.executable, "-m", "localsgd.cli", "run", "--fault-tolerant", "-n", str(ranks)]
    ended = subprocess.run(
        [*command, "--layout", layout, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def values(rank: int, count: int = 1001) -> np.ndarray:
    return np.random.default_rng(rank).normal(size=count).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "hosts", "lost", "left"),
    [
        (4, "4", [1], "3"),
        (4, "4", [0, 2], "2"),
        (4, "2+2", [1], "1+2"),
        (3, "2+1", [2], "2"),
        (2, "1+1", [0], "1"),
        (4, "0,2/1,3", [2], "1+2"),
        (6, "3+2+1", [0, 5], "2+2"),
    ],
)
def test_those_that_are_left_go_on(size: int, hosts: str, lost: list[int], left: str) -> None:
    """The same object and memory, with the bits of a group of this layout made at once."""

    def body(comm: Communicator) -> tuple[int, ...]:
        before = comm.rank
        shared = comm.allocate(1001, np.float32)
        comm.allreduce(shared, "mean")
        shared[...] = values(before)
        if before in lost:
            raise KeyError(f"rank {before}")
        with pytest.raises(RankFailure, match="failed: KeyError"):
            comm.allreduce(shared, "mean")
        calls = comm.traffic.calls
        shrunk = comm.shrink()
        assert str(comm.topology) == left and comm.size == comm.topology.size
        assert list(shrunk.lost) == lost and shrunk.numbers[comm.rank] == before
        shared[...] = values(before)
        comm.barrier()
        for number in range(shrunk.before.size):
            near = number in shrunk.before.neighbours(before)
            memory = shrunk.memory_of(shared, number)
            assert (memory is not None) == near
            if memory is not None and number not in lost:
                assert same_bits(memory, values(number))
        comm.barrier()
        comm.allreduce(shared, "mean")
        wanted = two_level_mean(
            [values(number) for number in shrunk.numbers], [1.0] * comm.size, comm.topology
        )
        assert same_bits(shared, wanted)
        assert comm.traffic.calls > calls
        half = comm.split(comm.rank % 2)
        assert half.collect(comm.rank) == list(range(comm.rank % 2, comm.size, 2))
        return shrunk.numbers

    found = run_threads(size, body, hosts=hosts, fault_tolerant=True)
    assert found == [tuple(rank for rank in range(size) if rank not in lost)] * (size - len(lost))


def test_one_after_the_other_is_lost() -> None:
    def body(comm: Communicator) -> int:
        me = comm.rank
        for last in (3, 2, 1):
            if me == last:
                raise KeyError
            with pytest.raises(RankFailure):
                comm.barrier()
            comm.shrink()
            assert comm.collect(me) == list(range(last))
        return comm.size

    assert run_threads(4, body, fault_tolerant=True) == [1]


def test_a_rank_that_is_somewhere_else_joins_when_it_comes() -> None:
    """And where nobody is lost the group works again: here one has left a call in the middle."""

    def body(comm: Communicator) -> int:
        def update(part: slice, mean: np.ndarray) -> None:
            if comm.rank == 1:
                raise KeyError("no such anchor")

        with pytest.raises((RankFailure, KeyError)):
            comm.allreduce(np.ones(7), "mean", update=update)
        with pytest.raises(RankFailure):
            comm.barrier()
        assert comm.shrink().lost == ()
        assert comm.collect(comm.rank) == [0, 1, 2]
        return comm.size

    assert run_threads(3, body, hosts="2+1", fault_tolerant=True) == [3, 3, 3]


def test_work_in_the_background_fails_and_later_work_goes_on() -> None:
    def body(comm: Communicator) -> int:
        if comm.rank == 0:
            raise KeyError
        numbers = np.ones(5)
        with pytest.raises(RankFailure):
            comm.start(lambda group: group.allreduce(numbers, "mean")).wait()
        comm.shrink()
        comm.start(lambda group: group.allreduce(numbers, "sum")).wait()
        assert numbers.tolist() == [2.0] * 5
        return comm.size

    assert run_threads(3, body, fault_tolerant=True) == [2, 2]


def test_a_job_that_was_not_started_for_it_says_so() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(RankFailure, match=r"run_threads\(fault_tolerant=True\)"):
            comm.shrink()

    run_threads(2, body)
    assert solo().shrink().lost == ()


SILENT = """
import os, signal
import numpy as np
import localsgd

comm = localsgd.world(deadline_s=1)
comm.barrier()
if comm.rank == 2:
    os.kill(os.getpid(), signal.SIGSTOP)
try:
    comm.barrier()
except localsgd.RankFailure as error:
    comm.shrink(silent=error.ranks)
print("went on")
"""


@pytest.mark.long
@pytest.mark.parametrize("layout", ["3", "1+2", "2+1", "1+1+1"])
def test_a_process_that_is_stopped_is_killed_and_the_others_go_on(
    tmp_path: Path, layout: str
) -> None:
    """By a neighbour, or by its warden."""
    script = tmp_path / "job.py"
    script.write_text(SILENT)
    code, output = run_job([script], 3, layout)
    assert code == 0, output
    assert output.count("went on") == 2


@pytest.mark.long
def test_a_thread_that_is_stuck_alone_on_its_host_ends_the_job(tmp_path: Path) -> None:
    """Nobody can end it, and nobody waits for ever."""
    script = tmp_path / "job.py"
    script.write_text(SILENT.replace("os.kill(os.getpid(), signal.SIGSTOP)", "signal.pause()"))
    code, output = run_job([script], 3, "2+1")
    assert code != 0 and "went on" not in output
    assert "nobody on its host can end it" in output


@pytest.mark.long
def test_a_process_that_is_stopped_for_a_moment_is_let_be(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    waking = (
        "subprocess.Popen(['sh', '-c', f'sleep 0.4; kill -CONT {os.getpid()}']); " + stop + "; "
    )
    patient = SILENT.replace("deadline_s=1)", "deadline_s=10)")
    script.write_text(patient.replace(stop, "import subprocess; " + 3 * waking))
    code, output = run_job([script], 3, "2+1")
    assert code == 0, output
    assert output.count("went on") == 3


PROGRAM = """
import ctypes, os, signal, sys
import numpy as np
import localsgd

how = sys.argv[1]
comm = localsgd.world(deadline_s=20)
shared = comm.allocate(100_000, np.float32)
comm.allreduce(shared, "mean")
me = comm.rank
shared[...] = me


def update(part, mean):
    if how == "in the middle" and me == 1:
        os.kill(os.getpid(), signal.SIGKILL)


if me == 1:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "an error":
        raise KeyError("no such batch")
    if how == "the end":
        sys.exit(3)
    if how == "a bad address":
        ctypes.string_at(0)
try:
    comm.allreduce(shared, "mean", update=update)
except localsgd.RankFailure as error:
    comm.shrink()
    shared[...] = me
    comm.allreduce(shared, "mean")
    if comm.rank == 0:
        print("left:", comm.size, comm.topology, shared[0], error, flush=True)
comm.barrier()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("layout", "how"),
    [
        ("4", "killed"),
        ("4", "an error"),
        ("2+2", "the end"),
        ("2+2", "in the middle"),
        ("1+1+1+1", "killed"),
        ("1+1+1+1", "a bad address"),
    ],
)
def test_a_job_goes_on_without_a_process(tmp_path: Path, layout: str, how: str) -> None:
    """(0 + 2 + 3) / 3, as those that are left wrote it again."""
    script = tmp_path / "job.py"
    script.write_text(PROGRAM)
    code, output = run_job([script, how], 4, layout)
    assert code == 0, output
    wanted = {"4": "3", "2+2": "1+2", "1+1+1+1": "1+1+1"}[layout]
    assert f"left: 3 {wanted} 1.6666666" in output


@pytest.mark.parametrize("flags", [[], ["--respawn"]], ids=["", "respawn"])
@pytest.mark.parametrize("last", ["", "from mpi4py import MPI; MPI.Finalize()"], ids=["", "own"])
def test_a_job_that_loses_nobody_ends_without_a_word(
    flags: list[str], last: str, tmp_path: Path
) -> None:
    """MPI is ended once, by the program or for it."""
    script = tmp_path / "job.py"
    script.write_text(f"import localsgd\nlocalsgd.world().barrier()\n{last}\n")
    code, output = run_job([*flags, script], 3, "2+1")
    lines = [line for line in output.splitlines() if "ranks share" not in line]
    assert (code, lines) == (0, [])
