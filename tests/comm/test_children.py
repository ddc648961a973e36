"""Children of ranks are no ranks: their ends and errors are their own, and the ranks go on.

Tried of the kind, on Open MPI and MPICH: ``os.fork`` and ``sys.exit``, an error, the end of the
program, ``os._exit``; with MPI started by localsgd, and by the program, before and after localsgd
was imported; multiprocessing's fork, spawn and forkserver; ``subprocess``, ``os.system``, a shell
around the rank; a launcher inside a rank; a child that asks for the world before its parent.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LIMIT_S = 60
MPICH = Path(os.environ.get("LOCALSGD_MPICH_PYTHON", ROOT / ".venv-mpich/bin/python"))
PYTHONS = {"Open MPI": Path(sys.executable), "MPICH": MPICH}

FIRST_LINES = {
    "by localsgd": "import localsgd",
    "before": "from mpi4py import MPI\nimport localsgd",
    "after": "import localsgd\nfrom mpi4py import MPI",
}
HEAD = """
import atexit, multiprocessing, os, subprocess, sys
comm = localsgd.world(deadline_s=20)
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def use():
    try:
        comm.barrier()
    except RuntimeError as error:
        say("the child:", error)
    say("the child has", localsgd.world().size)
"""
TAIL = "comm.barrier()\nsay('rank', comm.rank, 'of', comm.size, 'goes on')\n"
FORK = """
child = os.fork()
if child == 0:
    atexit.register(lambda: say("the child's own exit"))
    use()
    {end}
else:
    say("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
ENDS = {
    "exit": ("sys.exit(3)", 3),
    "error": ("raise KeyError('of the child')", 1),
    "end": ("sys.exit()", 0),
    "_exit": ("os._exit(4)", 4),
}


def run_job(folder: Path, python: Path, body: str, *, ranks: int = 2) -> tuple[int, str]:
    """Exit code and output of a job whose ranks run ``body``; it ends, or this raises."""
    script = folder / "job.py"
    script.write_text(body)
    ended = subprocess.run(
        [str(python), "-m", "localsgd.cli", "run", "-n", str(ranks), str(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def assert_ranks_go_on(code: int, output: str, ranks: int) -> None:
    assert code == 0, output
    for rank in range(ranks):
        assert f"rank {rank} of {ranks} goes on" in output, output
    assert "raised:" not in output


@pytest.mark.parametrize(
    ("library", "start", "end", "ranks"),
    [
        ("Open MPI", "by localsgd", "exit", 3),
        ("MPICH", "by localsgd", "error", 3),
        ("Open MPI", "by localsgd", "_exit", 1),
        ("MPICH", "by localsgd", "end", 1),
        ("Open MPI", "before", "error", 2),
        ("MPICH", "after", "exit", 2),
    ],
)
def test_a_forked_child_ends_by_itself(
    tmp_path: Path, library: str, start: str, end: str, ranks: int
) -> None:
    words, code = ENDS[end]
    body = FIRST_LINES[start] + HEAD + FORK.format(end=words) + "if child:\n    comm.barrier()\n"
    body += "    say('rank', comm.rank, 'of', comm.size, 'goes on')\n"
    found = run_job(tmp_path, PYTHONS[library], body, ranks=ranks)
    assert_ranks_go_on(*found, ranks)
    output = found[1]
    assert output.count(f"ended with {code}\n") == ranks, output
    assert output.count("the child has 1\n") == ranks, output
    assert output.count("the child's own exit") == (0 if end == "_exit" else ranks), output
    assert output.count("KeyError: 'of the child'") == (ranks if end == "error" else 0), output
    for rank in range(ranks):
        assert f"forked from rank {rank} of {ranks}" in output


@pytest.mark.parametrize("library", PYTHONS)
def test_processes_of_multiprocessing_end_by_themselves(tmp_path: Path, library: str) -> None:
    body = (
        "import localsgd, multiprocessing, os, sys\n"
        "def work():\n    assert localsgd.world().size == 1\n    sys.exit(5)\n"
        "if __name__ == '__main__':\n"
        "    comm = localsgd.world(deadline_s=20)\n"
        "    for method in ('fork', 'spawn', 'forkserver'):\n"
        "        child = multiprocessing.get_context(method).Process(target=work)\n"
        "        child.start()\n"
        "        child.join()\n"
        "        comm.barrier()\n"
        "        os.write(1, f'{method} ended with {child.exitcode}\\n'.encode())\n"
    )
    code, output = run_job(tmp_path, PYTHONS[library], body)
    assert code == 0, output
    for method in ("fork", "spawn", "forkserver"):
        assert output.count(f"{method} ended with 5") == 2


STARTED = """
line = "import localsgd, os; assert localsgd.world().size == 1; exit(4)"
inner = "import localsgd; c = localsgd.world(); c.barrier(); assert c.size == 2"
launch = [sys.executable, "-m", "localsgd.cli", "run", "-n", "2", "--"]
say("ended with", subprocess.run([sys.executable, "-c", line]).returncode)
say("ended with", os.system(f"{sys.executable} -c '{line}'") >> 8)
say("a job inside ended with", subprocess.run([*launch, sys.executable, "-c", inner]).returncode)
"""


@pytest.mark.parametrize("library", PYTHONS)
def test_what_a_rank_starts_is_a_group_of_one_but_for_the_ranks_of_a_launcher(
    tmp_path: Path, library: str
) -> None:
    body = FIRST_LINES["by localsgd"] + HEAD + STARTED + TAIL
    code, output = run_job(tmp_path, PYTHONS[library], body)
    assert_ranks_go_on(code, output, 2)
    assert output.count("ended with 4") == 4
    assert output.count("a job inside ended with 0") == 2


@pytest.mark.parametrize("library", PYTHONS)
def test_a_rank_may_be_started_by_a_shell(tmp_path: Path, library: str) -> None:
    python = PYTHONS[library]
    inner = "import localsgd; c = localsgd.world(); c.barrier(); assert c.size == 2"
    launch = [str(python), "-m", "localsgd.cli", "run", "-n", "2", "--"]
    ended = subprocess.run(
        [*launch, "bash", "-c", f'true; {python} -c "{inner}" && echo well'],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0 and ended.stdout.count("well") == 2, ended.stdout + ended.stderr


@pytest.mark.parametrize("library", PYTHONS)
def test_the_second_process_that_would_be_a_rank_is_told_at_once(
    tmp_path: Path, library: str
) -> None:
    """A child that asks before its parent does is the rank, if its launcher lets it."""
    body = (
        "import localsgd, subprocess, sys\n"
        "line = 'import localsgd, sys; c = localsgd.world(deadline_s=20); "
        'print("child", c.size, flush=True); sys.stdin.read()\'\n'
        "child = subprocess.Popen([sys.executable, '-c', line], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)\n"
        "first = child.stdout.readline()\n"
        "try:\n    print('parent', localsgd.world(deadline_s=20).size, flush=True)\n"
        "except RuntimeError as error:\n    print('refused:', error, flush=True)\n"
        "print(first or child.stderr.read(), flush=True)\n"
        "child.communicate()\n"
    )
    _, output = run_job(tmp_path, PYTHONS[library], body, ranks=1)
    assert "a rank must be" in output, output
