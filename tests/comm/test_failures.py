"""MPI jobs in which a rank raises, dies, ends early or stays silent: nobody hangs, all is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 60
ROOT = Path(__file__).resolve().parents[2]
MPICH = Path(os.environ.get("LOCALSGD_MPICH_PYTHON", ROOT / ".venv-mpich/bin/python"))


def run_job(tmp_path: Path, body: str, *, ranks: int = 3, layout: str = "3") -> tuple[int, str]:
    """Exit code and output of a job whose ranks run ``body`` with ``comm`` in scope."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, sys\n"
        "import numpy as np\n"
        "import localsgd\n"
        "comm = localsgd.world(deadline_s=20)\n"
        "buffer = comm.allocate(1000, np.float32)\n"
        "buffer[...] = comm.rank\n"
        "comm.allreduce(buffer, 'mean')\n"
        f"{body}\n"
    )
    command = [sys.executable, "-m", "localsgd.cli", "run", "-n", str(ranks), "--layout", layout]
    ended = subprocess.run(
        [*command, str(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("layout", ["3", "2+1", "1+1+1"])
def test_rank_that_raises_ends_the_job_with_its_message(tmp_path: Path, layout: str) -> None:
    body = (
        "if comm.rank == 1:\n    raise KeyError('no such batch')\ncomm.barrier()\nprint('went on')"
    )
    code, output = run_job(tmp_path, body, layout=layout)
    assert code != 0
    assert "rank 1 raised:" in output
    assert "KeyError: 'no such batch'" in output
    assert "went on" not in output


@pytest.mark.long
@pytest.mark.parametrize("library", ["openmpi", "mpich"])
def test_rank_that_raises_under_a_plain_mpirun_ends_the_job_with_its_message(
    tmp_path: Path, library: str
) -> None:
    """Rank 0 comes to no collective any more: it computes while rank 1 raises."""
    python = Path(sys.executable) if library == "openmpi" else MPICH
    script = tmp_path / "job.py"
    script.write_text(
        "import threading\n"
        "import localsgd\n"
        "comm = localsgd.world()\n"
        "comm.barrier()\n"
        "if comm.rank == 0:\n"
        "    threading.Event().wait()\n"
        "if comm.rank == 1:\n"
        "    raise KeyError('no such batch')\n"
        "comm.barrier()\n"
    )
    placing = ["--oversubscribe", "--bind-to", "none"] if library == "openmpi" else []
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ended = subprocess.run(
        [str(python.with_name("mpirun")), *placing, "-n", "3", str(python), str(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **allowed},
    )
    assert ended.returncode != 0
    assert "rank 1 raised:" in ended.stderr
    assert "KeyError: 'no such batch'" in ended.stderr


@pytest.mark.long
@pytest.mark.parametrize("layout", ["3", "2+1"])
def test_rank_that_raises_while_others_have_no_data_ends_the_job(
    tmp_path: Path, layout: str
) -> None:
    body = (
        "arena = localsgd.Arena({'x': np.zeros(3)}, comm)\n"
        "training = localsgd.LocalSGD(localsgd.optim.SGD(arena, lr=1.0), 2)\n"
        "with training.uneven():\n"
        "    for step in range(4 * comm.rank):\n"
        "        if step == 5:\n"
        "            raise KeyError('no such batch')\n"
        "        training.step()\n"
        "print('went on')"
    )
    code, output = run_job(tmp_path, body, layout=layout)
    assert code != 0
    assert "rank 2 raised:" in output
    assert "KeyError: 'no such batch'" in output
    assert "went on" not in output


@pytest.mark.long
def test_error_in_an_update_of_a_native_reduction_is_told_to_the_others(tmp_path: Path) -> None:
    body = (
        "native = localsgd.world(reduction='native', deadline_s=20)\n"
        "def update(part, mean):\n"
        "    if comm.rank == 1:\n"
        "        raise KeyError('no such anchor')\n"
        "try:\n"
        "    native.allreduce(buffer, 'mean', update=update)\n"
        "except (KeyError, localsgd.RankFailure) as error:\n"
        "    os.write(1, f'{type(error).__name__}: {error}\\n'.encode())\n"
        "comm.barrier()\n"
    )
    code, output = run_job(tmp_path, body)
    assert code == 0, output
    assert output.count("KeyError: 'no such anchor'") == 3
    assert output.count("RankFailure: rank 1 failed") >= 1


@pytest.mark.long
def test_a_native_reduction_with_a_codec_is_refused_on_every_rank(tmp_path: Path) -> None:
    """MPI would send the numbers as they are; the buffer stays, and so does the group."""
    body = (
        "native = localsgd.world(reduction='native', deadline_s=20)\n"
        "before = buffer.copy()\n"
        "for verb in (native.allreduce, native.reduce_scatter):\n"
        "    try:\n"
        "        verb(buffer, 'mean', codec=localsgd.codecs.FLOAT16)\n"
        "    except ValueError as error:\n"
        "        os.write(1, f'ValueError: {error}\\n'.encode())\n"
        "assert np.array_equal(buffer, before)\n"
        "native.allreduce(buffer, 'mean')\n"
    )
    code, output = run_job(tmp_path, body)
    assert code == 0, output
    assert output.count("ValueError: reduction 'native' has no codecs, got float16") == 6


@pytest.mark.long
def test_different_reductions_are_a_mismatch_on_every_rank(tmp_path: Path) -> None:
    """One rank would wait in MPI's own reduction, where there is no deadline."""
    body = (
        "try:\n"
        "    localsgd.world(reduction='native' if comm.rank == 1 else 'exact', deadline_s=15)\n"
        "except localsgd.MismatchError as error:\n"
        "    os.write(1, f'{error}\\n'.encode())\n"
        "comm.barrier()\n"
    )
    code, output = run_job(tmp_path, body)
    assert code == 0, output
    reason = 'reduction must be equal on all ranks, got ranks 0, 2: "exact"; rank 1: "native"'
    assert output.count(reason) == 3


@pytest.mark.parametrize("layout", ["3", "2+1"])
def test_killed_rank_ends_the_job(tmp_path: Path, layout: str) -> None:
    body = (
        "if comm.rank == 0:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "comm.barrier()\n"
        "print('went on')"
    )
    code, output = run_job(tmp_path, body, layout=layout)
    assert code != 0
    assert "went on" not in output


@pytest.mark.long
def test_rank_that_raises_after_the_end_of_mpi_says_so(tmp_path: Path) -> None:
    body = (
        "from mpi4py import MPI\n"
        "MPI.Finalize()\n"
        "if comm.rank == 1:\n"
        "    raise KeyError('no such file')"
    )
    code, output = run_job(tmp_path, body)
    assert code != 0
    assert "KeyError: 'no such file'" in output


@pytest.mark.long
def test_the_end_of_a_forked_process_is_not_that_of_the_rank(tmp_path: Path) -> None:
    """The others wait meanwhile, and look whether rank 1 can still come."""
    body = (
        "import atexit\n"
        "if comm.rank == 1:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        atexit._run_exitfuncs()\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    sum(range(20_000_000))\n"
        "comm.barrier()\n"
    )
    code, output = run_job(tmp_path, body)
    assert code == 0, output


@pytest.mark.long
@pytest.mark.parametrize("layout", ["2", "1+1"])
def test_a_message_that_comes_too_late_finds_its_memory(tmp_path: Path, layout: str) -> None:
    """Rank 0 has given up on it, and keeps nothing else of it."""
    body = (
        "import gc, weakref\n"
        "brief = localsgd.world(deadline_s=2)\n"
        "other, mine, theirs = 1 - comm.rank, np.ones(9), np.zeros(9)\n"
        "if comm.rank == 0:\n"
        "    found = weakref.ref(theirs)\n"
        "    try:\n"
        "        brief.sendrecv(mine, theirs, other, other)\n"
        "    except localsgd.RankFailure as error:\n"
        "        assert 'waited' in str(error)\n"
        "    del theirs\n"
        "    gc.collect()\n"
        "    assert found() is not None\n"
        "    try:\n"
        "        brief.barrier()\n"
        "    except localsgd.RankFailure as error:\n"
        "        assert 'takes part no more' in str(error)\n"
        "comm.barrier()\n"
        "if comm.rank == 1:\n"
        "    brief.sendrecv(mine, theirs, other, other)\n"
        "    assert theirs.tolist() == [1.0] * 9\n"
        "comm.barrier()\n"
        "if comm.rank == 0:\n"
        "    assert found() is not None\n"
    )
    code, output = run_job(tmp_path, body, ranks=2, layout=layout)
    assert code == 0, output


@pytest.mark.long
def test_rank_that_ends_early_is_named(tmp_path: Path) -> None:
    code, output = run_job(tmp_path, "if comm.rank == 2: sys.exit(0)\ncomm.barrier()")
    assert code != 0
    assert "RankFailure: rank 2 has closed the group or ended" in output


@pytest.mark.parametrize("layout", ["2", "1+1"])
def test_silent_rank_is_named_when_the_deadline_has_passed(tmp_path: Path, layout: str) -> None:
    """Rank 1 stops itself; nothing wakes it, and the job ends all the same."""
    body = (
        "other = localsgd.world(deadline_s=1)\n"
        "other.barrier()\n"
        "if comm.rank == 1:\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "other.barrier()"
    )
    code, output = run_job(tmp_path, body, ranks=2, layout=layout)
    assert code != 0
    assert "RankSilent: waited 1" in output
    where = "is stopped)" if layout == "2" else "does not answer: it computes, or is lost"
    assert re.search(f"for rank 1: rank 1.* was last .*{re.escape(where)}", output), output


@pytest.mark.long
@pytest.mark.parametrize("earlier", ["", "localsgd.world(deadline_s=20)\n"], ids=["first", "again"])
def test_rank_that_does_not_ask_for_the_world_is_named(tmp_path: Path, earlier: str) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import threading\n"
        "import localsgd\n"
        "from mpi4py import MPI\n"
        f"{earlier}"
        "if MPI.COMM_WORLD.rank == 1:\n"
        "    threading.Event().wait()\n"
        "localsgd.world(deadline_s=1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "localsgd.cli", "run", "-n", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode != 0
    assert "(deadline 1 s) for rank 1: no word yet" in ended.stderr


def test_bad_input_on_one_rank_names_it_on_the_others(tmp_path: Path) -> None:
    body = (
        "try:\n"
        "    comm.allreduce(buffer if comm.rank else buffer.astype(int), 'mean')\n"
        "except (TypeError, localsgd.MismatchError) as error:\n"
        "    print(f'rank {comm.rank}: {type(error).__name__}: {error}')\n"
        "comm.allreduce(buffer, 'mean')\n"
        "print('went on with', buffer[0])"
    )
    code, output = run_job(tmp_path, body)
    assert code == 0, output
    reason = "TypeError: the mean needs a floating-point buffer, got int64"
    assert f"rank 0: {reason}" in output
    for rank in (1, 2):
        assert f"rank {rank}: MismatchError: rank 0 could not take part: {reason}" in output
    assert output.count("went on with 1.0") == 3


@pytest.mark.long
def test_a_rank_that_can_open_no_files_does_not_take_the_others_for_dead(tmp_path: Path) -> None:
    """The others come late, so that rank 1 looks for them where it can look nowhere."""
    body = (
        "import resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "if comm.rank == 1:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))\n"
        "else:\n"
        "    sum(range(20_000_000))\n"
        "comm.barrier()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
    )
    code, said = run_job(tmp_path, body)
    assert code == 0, said


@pytest.mark.long
@pytest.mark.parametrize("layout", ["3", "2+1"])
def test_memory_that_cannot_be_shared_is_private_which_is_said_once(
    tmp_path: Path, layout: str
) -> None:
    """Rank 1 may open no more files, so it can make no block; 0, 1 and 2 average to 1.

    Neither can it make the larger block through which private memory is usually reduced.
    """
    body = (
        "import resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "if comm.rank == 1:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))\n"
        "buffers = [comm.allocate(count, np.float64) for count in (100_000, 1_000)]\n"
        "for buffer in buffers:\n"
        "    buffer[...] = comm.rank\n"
        "    comm.allreduce(buffer, 'mean')\n"
        "    assert set(buffer.tolist()) == {1.0}\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
    )
    code, said = run_job(tmp_path, body, layout=layout)
    assert code == 0, said
    assert said.count("localsgd: memory is not shared") == 1
    assert "rank 1: cannot make a block of 800,000 bytes: [Errno 24] Too many open files" in said


@pytest.mark.long
@pytest.mark.parametrize("layout", ["2+1", "1+2", "1+1+1"])
def test_error_that_a_rank_catches_is_told_to_other_hosts_at_once(
    tmp_path: Path, layout: str
) -> None:
    """Rank 0 goes on to something else, where it waits until the others have given up."""
    body = (
        "def update(part, mean):\n"
        "    if comm.rank == 0:\n"
        "        raise KeyError('no such anchor')\n"
        "other = localsgd.world(deadline_s=19)\n"
        "try:\n"
        "    comm.allreduce(buffer, 'mean', update=update)\n"
        "except (KeyError, localsgd.RankFailure) as error:\n"
        "    os.write(1, f'{type(error).__name__}: {error}\\n'.encode())\n"
        "other.barrier()\n"
    )
    code, output = run_job(tmp_path, body, layout=layout)
    assert code == 0, output
    assert output.count("rank 0 failed: KeyError: 'no such anchor'") == 2


@pytest.mark.long
@pytest.mark.parametrize("layout", ["2+1", "1+1+1"])
def test_rank_that_ends_early_is_named_on_other_hosts(tmp_path: Path, layout: str) -> None:
    body = "if comm.rank == 2: sys.exit(0)\ncomm.barrier()"
    code, output = run_job(tmp_path, body, layout=layout)
    assert code != 0
    assert "rank 2 has closed the group or ended" in output


@pytest.mark.long
@pytest.mark.parametrize("last", ["", "MPI.Finalize()", "if comm.rank == 1: MPI.Finalize()"])
def test_a_job_ends_without_a_word(tmp_path: Path, last: str) -> None:
    """What ranks announce as they leave is taken: UCX would warn of each that is not."""
    body = (
        "from mpi4py import MPI\n"
        "part = comm.split(0)\n"
        "if comm.rank == 0:\n"
        "    part.close()\n"
        f"{last}"
    )
    code, output = run_job(tmp_path, body, layout="1+1+1")
    # But for the launcher's, where there are fewer cores than ranks.
    said = [line for line in output.splitlines() if not line.startswith("localsgd: 3 ranks share")]
    assert (code, said) == (0, [])
