"""docs/cluster.md: its launches, with this machine for the hosts, and its table of settings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from localsgd.cli import launcher
from pages import ROOT, blocks, commands, program

pytestmark = pytest.mark.long

PAGE = ROOT / "docs/cluster.md"
MPICH = Path(os.environ.get("LOCALSGD_MPICH_PYTHON", ROOT / ".venv-mpich/bin/python"))
NODES = "node1:2,node2:2"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(program(PAGE))
    return tmp_path


def launch(line: str, folder: Path, python: Path) -> str:
    """What a command of the page prints, in the environment of this interpreter."""
    own = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ended = subprocess.run(
        shlex.split(line),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env={**os.environ, **own, "PATH": f"{python.parent}:{os.environ['PATH']}"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def only(start: str) -> str:
    """The one command of the page that begins so."""
    (line,) = [line for line in commands(PAGE) if line.startswith(start)]
    return line


@pytest.mark.parametrize(
    ("start", "python", "hosts"),
    [
        ("mpirun --hostfile", Path(sys.executable), "localhost slots=4\n"),
        ("mpirun -f", MPICH, "localhost:4\n"),
    ],
    ids=["Open MPI", "MPICH"],
)
def test_mpirun_with_a_host_file(job: Path, start: str, python: Path, hosts: str) -> None:
    (job / "hosts.txt").write_text(hosts)
    assert launch(only(start), job, python) == "4 workers on hosts 4: [1. 2. 3.]\n"


def test_localsgd_run_with_hosts(job: Path) -> None:
    line = only("localsgd run -n 4 --hosts")
    assert NODES in line
    output = launch(line.replace(NODES, "localhost:4"), job, Path(sys.executable))
    assert output == "4 workers on hosts 4: [1. 2. 3.]\n"


def test_a_clusters_layout_on_one_machine(job: Path) -> None:
    line = "localsgd run -n 4 --layout 2+2 train.py"
    assert f"`{line}`" in PAGE.read_text()
    assert launch(line, job, Path(sys.executable)) == "4 workers on hosts 2+2: [1. 2. 3.]\n"


@pytest.mark.parametrize("number", [0, 1])
def test_the_batch_scripts_are_some(number: int) -> None:
    """Slurm runs them in ``tests/slurm``."""
    scripts = [block for block in blocks(PAGE, "bash") if block.startswith("#!")]
    assert len(scripts) == 2
    script = scripts[number]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    directives = re.findall(r"^#SBATCH (.*)", script, re.MULTILINE)
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", directive) for directive in directives)
    assert len(directives) == script.count("#SBATCH")


def test_the_table_has_what_the_launcher_sets() -> None:
    """Every name with its value, in the first eight rows; what MPI's start sets bears a star."""
    section = PAGE.read_text().partition("## What to set")[2]
    rows = re.findall(r"^\| (.*`.*?) \|", section, re.MULTILINE)
    settings = [
        launcher.BLAS,
        launcher.OPEN_MPI,
        launcher.PLACEMENT,
        launcher.PLACEMENT_BEFORE_5,
        launcher.AS_ROOT,
    ]
    expected = {f"{name}={value}" for group in settings for name, value in group.items()}
    assert set(re.findall(r"`([^`]+)`", " ".join(rows[:8]))) == expected
    starred = {f"{name}={value}" for name, value in launcher.OPEN_MPI.items()}
    assert {row.split("`")[1] for row in rows if row.endswith("*")} == starred


def test_variables_on_the_page_are_read_somewhere() -> None:
    sources = "".join(
        path.read_text() for path in [*ROOT.glob("comm/**/*.py"), *ROOT.glob("localsgd/**/*.py")]
    )
    for name in re.findall(r"LOCALSGD_\w+", PAGE.read_text()):
        assert f'"{name}"' in sources, name


def test_what_a_silent_rank_is_said_to_do(job: Path) -> None:
    """The message on the page, with a deadline of 2 seconds for its 60."""
    (job / "train.py").write_text(
        "import threading\n"
        "import localsgd\n"
        "comm = localsgd.world(deadline_s=2)\n"
        "comm.barrier()\n"
        "if comm.rank == 2:\n"
        "    threading.Event().wait()\n"
        "comm.barrier()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "localsgd.cli", "run", "-n", "3", "train.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=job,
    )
    assert ended.returncode != 0
    page = " ".join(PAGE.read_text().split())
    promised = re.search(r"`(waited .*?)`", page)
    assert promised is not None
    pattern = re.escape(promised[1].replace("deadline 60 s", "deadline 2 s"))
    for number, digits in {r"60\.0": r"\d+\.\d", "60": r"\d+", "5341": r"\d+"}.items():
        pattern = pattern.replace(number, digits)
    assert re.search(pattern, ended.stderr), ended.stderr
    assert ended.stderr.count("has waited") == 1
