"""Nothing of a job stays behind in shared memory, however it ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cli.jobs import LIMIT_S, SHARED, run, script, waiting_job


@pytest.mark.parametrize("ignored", [0, signal.SIGTERM], ids=["none", "SIGTERM"])
def test_killed_command_leaves_no_process_and_no_file(tmp_path: Path, ignored: int) -> None:
    ignoring = f"import signal; signal.signal({ignored}, signal.SIG_IGN)\n" if ignored else ""
    with waiting_job(tmp_path, ignoring) as job:
        job.launcher.kill()
        assert job.all_end()
        assert job.files_left() == []


def test_killed_mpirun_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """Open MPI's ranks would run on, and the session folder and the segments of both stay."""
    with waiting_job(tmp_path) as job:
        os.kill(job.mpirun, signal.SIGKILL)
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGKILL
        assert job.all_end()
        assert job.files_left() == []


def test_killed_rank_ends_the_job_and_leaves_no_file(tmp_path: Path) -> None:
    with waiting_job(tmp_path) as job:
        os.kill(job.ranks[1], signal.SIGKILL)
        assert job.launcher.wait(LIMIT_S) != 0
        assert job.all_end()
        assert job.files_left() == []


def test_a_job_has_a_folder_of_its_own_for_segments(tmp_path: Path) -> None:
    body = (
        "world.Barrier()\n"
        "folder = os.environ['OMPI_MCA_btl_sm_backing_directory']\n"
        "found = [folder, sorted(name[:11] for name in os.listdir(folder))]\n"
        "world.Barrier()\n"
        "if world.rank == 0:\n"
        "    os.write(1, json.dumps(found).encode())\n"
    )
    folder, names = json.loads(run("run", "-n", "2", script(tmp_path, body)).stdout)
    assert names == ["sm_segment."] * 2
    assert Path(folder).parent == SHARED and not Path(folder).exists()


def test_segments_of_other_jobs_stay(tmp_path: Path) -> None:
    """One that was made during the job, and that nobody has mapped yet."""
    with waiting_job(tmp_path) as job:
        other = SHARED / f"mpich_shm_{os.getpid()}_other"
        other.touch()
        try:
            job.launcher.terminate()
            job.launcher.wait(LIMIT_S)
            assert other.exists()
        finally:
            other.unlink(missing_ok=True)
