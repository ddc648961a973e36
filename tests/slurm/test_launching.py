"""Jobs that Slurm starts: who finds whom, on which hosts, and how a job ends that a rank breaks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pages import ROOT, blocks, program
from slurm.cluster import LIBRARIES, LIMIT_S, PLUGINS, TRAINING, environment, submit
from testbed.launch import Library
from testbed.slurm import Slurm

PAGE = ROOT / "docs/cluster.md"
LEARNED = "4 workers on hosts 2+2: [1. 2. 3.]\n"
DISTURBED = """
import os, sys
import localsgd
comm = localsgd.world(deadline_s=20)
comm.barrier()
if comm.rank == 2:
    {}
comm.barrier()
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with the training of the page."""
    (tmp_path / "train.py").write_text(program(PAGE))
    return tmp_path


def srun(
    slurm: Slurm, library: Library, *words: str, plugin: str | None = None
) -> subprocess.CompletedProcess[str]:
    mpi = f"--mpi={plugin or PLUGINS[library]}"
    command = ["srun", "--quiet", mpi, "--kill-on-bad-exit=0", *words]
    return slurm.run(command, timeout_s=LIMIT_S, env=environment(library))


@pytest.mark.parametrize("library", LIBRARIES)
def test_srun_trains_to_the_bits_of_threads(
    slurm: Slurm, tmp_path: Path, library: Library, digest: str
) -> None:
    where = ["--nodes=2", "--ntasks-per-node=2"]
    ended = srun(slurm, library, *where, "python", str(TRAINING), str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    begins = "4 workers on hosts 2+2 begin after step 0"
    assert ended.stdout == f"{begins}\nends with {digest}\n"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("size", "where", "layout"),
    [
        (1, "--nodes=1", "1"),
        (2, "--nodes=1", "2"),
        (3, "--nodes=2", "2+1"),
        (4, "--nodes=2 --distribution=cyclic", "0,2/1,3"),
    ],
    ids=["1", "2", "2+1", "cyclic"],
)
def test_nodes_are_hosts_however_ranks_are_dealt_to_them(
    slurm: Slurm, job: Path, library: Library, size: int, where: str, layout: str
) -> None:
    where_to = [f"--ntasks={size}", *where.split()]
    ended = srun(slurm, library, *where_to, "python", str(job / "train.py"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{size} workers on hosts {layout}: [1. 2. 3.]\n"


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_batch_script_of_the_page(slurm: Slurm, job: Path, library: Library) -> None:
    script = next(block for block in blocks(PAGE, "bash") if block.startswith("#!"))
    assert "--mpi=pmix" in script
    batch = submit(slurm, job, script.replace("pmix", PLUGINS[library]), library)
    assert batch.ends()["JobState"] == "COMPLETED", batch.output()
    assert batch.output() == LEARNED


@pytest.mark.parametrize("library", LIBRARIES)
def test_localsgd_run_in_a_batch_script(slurm: Slurm, job: Path, library: Library) -> None:
    line = "localsgd run -n $SLURM_NTASKS train.py"
    assert f"`{line}`" in PAGE.read_text()
    script = f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2\n{line}\n"
    batch = submit(slurm, job, script, library)
    assert batch.ends()["JobState"] == "COMPLETED", batch.output()
    assert batch.output() == LEARNED


def test_the_other_librarys_plugin_makes_groups_of_one_or_fails(slurm: Slurm, job: Path) -> None:
    """As the page says."""
    where = ["--nodes=2", "--ntasks-per-node=2", "python", str(job / "train.py")]
    for plugin in ("pmi2", "none"):
        ended = srun(slurm, "openmpi", *where, plugin=plugin)
        assert ended.stdout == 4 * "1 workers on hosts 1: [1. 2. 3.]\n", ended.stderr
    ended = srun(slurm, "mpich", *where, plugin="pmix")
    assert ended.returncode != 0
    assert "Runtime environment uses unsupported PMI version PMIx" in ended.stderr


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os.kill(os.getpid(), 9)", ""),
        ("raise KeyError('no such batch')", "rank 2 raised:"),
        ("os._exit(3)", ""),
    ],
    ids=["killed", "raises", "ends"],
)
def test_a_rank_that_dies_ends_the_job(
    slurm: Slurm, tmp_path: Path, library: Library, end: str, message: str
) -> None:
    script = tmp_path / "job.py"
    script.write_text(DISTURBED.format(end))
    where = ["--nodes=2", "--ntasks-per-node=2", "python", str(script)]
    ended = srun(slurm, library, *where)
    assert ended.returncode != 0
    assert message in ended.stderr


def test_kill_on_bad_exit_hides_code_75(slurm: Slurm) -> None:
    """Slurm then ends the others, by SIGTERM, as soon as the first has ended, as it should."""
    for kill, seconds, code in ((0, 1, 75), (1, 30, 143)):
        command = ["srun", "--quiet", f"--kill-on-bad-exit={kill}", "--ntasks=4", "bash", "-c"]
        waits = f'[ "$SLURM_PROCID" = 0 ] || sleep {seconds}; exit 75'
        ended = slurm.run([*command, waits], timeout_s=LIMIT_S)
        assert ended.returncode == code, ended.stderr
