"""Jobs that fail say so once, under both MPI libraries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cli.jobs import LIMIT_S, run, started
from integration.on_hosts import interpreter

pytestmark = pytest.mark.long

LIBRARIES = ["openmpi", "mpich"]
# Whatever MPI says of a failure.
BANNERS = re.compile(r"MPI_ABORT|prterun|mpiexec@|BAD TERMINATION|Abort\(")


def fail(
    tmp_path: Path, body: str, *options: str, ranks: int = 3, library: str = "openmpi"
) -> tuple[int, str, str, str]:
    """Exit code, output, errors and what the file has of a job; ``comm`` is in scope."""
    path = tmp_path / "job.py"
    path.write_text(f"import os, sys\nimport localsgd\ncomm = localsgd.world()\n{body}")
    folder = tmp_path / "tmp"
    folder.mkdir()
    ended = run(
        *("run", "-n", str(ranks), *options, str(path)),
        python=interpreter(library),
        environment={"TMPDIR": str(folder)},
    )
    said = re.sub(r"^localsgd: \d+ ranks share .*\n", "", ended.stderr)
    named = re.search(r"localsgd: all that was said, and every traceback: (.*)\n\Z", said)
    whole = ""
    if named:
        said, whole = said[: named.start()], Path(named[1]).read_text()
    left = [Path(named[1])] if named else []
    # Hydra's description of the machine bears no name of the job.
    assert [x for x in folder.iterdir() if "hwloc" not in x.name] == left
    return ended.returncode, ended.stdout, said, whole


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_equal_errors_are_told_once(tmp_path: Path, ranks: int, library: str) -> None:
    """By those that have raised when the first of them ends the job, at least one."""
    body = "comm.barrier()\nraise KeyError('no such batch')"
    code, output, said, whole = fail(tmp_path, body, ranks=ranks, library=library)
    assert (code, output) == (1, "")
    who = r"(all \d ranks|ranks? \d[\d, -]*)"
    line = re.escape(
        "Traceback (most recent call last):\n"
        f'  File "{tmp_path}/job.py", line 5, in <module>\n'
        "    raise KeyError('no such batch')\n"
        "KeyError: 'no such batch'\n"
    )
    assert re.fullmatch(f"localsgd: {who} raised:\n{line}", said), said
    assert "KeyError: 'no such batch'" in whole


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL, as by a host that is out of memory"),
        ("os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("sys.exit(3)", "ended with exit code 3"),
    ],
)
def test_what_comes_of_it_comes_after_the_cause(
    tmp_path: Path, library: str, trouble: str, cause: str
) -> None:
    body = f"comm.barrier()\nif comm.rank == 1:\n    {trouble}\ncomm.barrier()"
    code, output, said, whole = fail(tmp_path, body, library=library)
    assert code != 0 and output.strip() == ""
    first, *others = said.splitlines()
    assert first == f"localsgd: rank 1 {cause}", said
    for line in others:
        assert re.fullmatch(r"localsgd: ranks? [02](, 2)? then raised: RankFailure: .*", line), said
    assert bool(whole) == bool(others)


def test_an_error_of_one_rank_is_told_before_what_others_say_of_it(tmp_path: Path) -> None:
    body = (
        "import time\n"
        "if comm.rank == 1:\n"
        "    raise KeyError('no such batch')\n"
        "try:\n"
        "    comm.barrier()\n"
        "except localsgd.RankFailure as error:\n"
        "    raise RuntimeError('given up') from error\n"
    )
    _, _, said, _ = fail(tmp_path, body)
    assert said.startswith("localsgd: rank 1 raised:\n")
    assert said.count("Traceback") == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_frames_of_the_library_are_a_line_unless_they_are_asked_for(
    tmp_path: Path, library: str
) -> None:
    body = "import numpy as np\ncomm.allreduce(np.ones(1 + comm.rank), 'mean')"
    _, _, said, whole = fail(tmp_path, body, ranks=2, library=library)
    assert said.count("MismatchError: all ranks must make the same call") == 1
    assert re.search(
        r"\n  … \d+ frames of localsgd \(--traceback full shows them\)\nlocalsgd\.comm", said
    ), said
    assert said.count("  File ") == 1
    assert "/group.py" in whole and not BANNERS.search(said)


def test_all_frames_are_told_on_request(tmp_path: Path) -> None:
    body = "import numpy as np\ncomm.allreduce(np.ones(1 + comm.rank), 'mean')"
    _, _, said, _ = fail(tmp_path, body, "--traceback", "full", ranks=2)
    assert said.count("/group.py") == 1 and "…" not in said
    assert "as_rank.py" not in said


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("body", "words"),
    [("def f(:\n", "SyntaxError: "), ("import nowhere\n", "ModuleNotFoundError: No module named ")],
)
def test_errors_before_the_library_is_loaded_are_told_once(
    tmp_path: Path, body: str, words: str, library: str
) -> None:
    path = tmp_path / "job.py"
    path.write_text(body)
    ended = run("run", "-n", "2", str(path), python=interpreter(library))
    assert ended.returncode == 1
    assert ended.stderr.count(words) == 1 and not BANNERS.search(ended.stderr)
    assert ended.stderr.startswith("localsgd: rank")


def test_errors_of_threads_are_named_before_what_came_of_them(tmp_path: Path) -> None:
    body = (
        "import threading\n"
        "def load():\n"
        "    raise OSError('no disk')\n"
        "loader = threading.Thread(target=load, name='loader')\n"
        "loader.start()\n"
        "loader.join()\n"
        "comm.barrier()\n"
        "raise ValueError('no batch')\n"
    )
    _, _, said, whole = fail(tmp_path, body, ranks=2)
    assert "localsgd: a thread of ranks 0, 1 had raised, 'loader': OSError: no disk\n" in said
    assert said.index("had raised") < said.index("ValueError: no batch")
    assert "OSError: no disk" in whole


def test_errors_of_threads_are_no_failure(tmp_path: Path) -> None:
    body = (
        "import threading\n"
        "loader = threading.Thread(target=lambda: {}['a'])\n"
        "loader.start()\n"
        "loader.join()\n"
    )
    code, _, said, whole = fail(tmp_path, body, ranks=1)
    assert (code, whole) == (0, "") and "had raised" not in said
    assert said.endswith("KeyError: 'a'\n")


def test_an_exit_code_is_no_error(tmp_path: Path) -> None:
    code, _, said, whole = fail(tmp_path, "comm.barrier()\nsys.exit(7)", ranks=2)
    assert (code, whole) == (7, "")
    assert re.fullmatch(r"localsgd: ranks? [01](, 1)? ended with exit code 7\n", said), said


def test_what_mpi_says_is_told_where_it_is_all_there_is(tmp_path: Path) -> None:
    _, _, said, whole = fail(tmp_path, "os._exit(7)", ranks=2)
    assert "prterun detected that one or more processes exited" in said and whole == ""


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_the_program_says_goes_through_unchanged(tmp_path: Path, library: str) -> None:
    body = (
        "os.write(1, b'-' * 74 + b'\\nout\\n' + b'=' * 83 + b'\\n')\n"
        "os.write(2, b'-' * 74 + b'\\nerrors\\nhalf')\n"
        "raise KeyError('no such batch')"
    )
    _, output, said, whole = fail(tmp_path, body, ranks=1, library=library)
    assert output == f"{'-' * 74}\nout\n{'=' * 83}\n"
    assert said.startswith(f"{'-' * 74}\nerrors\nhalf") and "KeyError: 'no such batch'" in said
    assert output in whole and "errors\nhalf" in whole


@pytest.mark.parametrize("library", LIBRARIES)
def test_ranks_that_have_no_folder_print_their_errors(tmp_path: Path, library: str) -> None:
    """As those on other hosts."""
    body = (
        "import shutil\n"
        "comm.barrier()\n"
        "shutil.rmtree(os.environ['LOCALSGD_ERRORS'], ignore_errors=True)\n"
        "comm.barrier()\n"
        "if comm.rank == 1:\n"
        "    raise KeyError('no such batch')\n"
        "comm.barrier()\n"
    )
    code, _, said, _ = fail(tmp_path, body, library=library)
    assert code == 1
    assert "rank 1 raised:\nTraceback" in said and "KeyError: 'no such batch'" in said


def test_a_loss_that_the_job_survives_is_told_while_it_goes_on(tmp_path: Path) -> None:
    """Rank 0 waits until somebody has read what rank 1 raised."""
    path, read = tmp_path / "job.py", tmp_path / "read"
    path.write_text(
        "import os, time\n"
        "import localsgd\n"
        "comm = localsgd.world()\n"
        "comm.barrier()\n"
        "if comm.rank == 1:\n"
        "    raise KeyError('no such batch')\n"
        f"while not os.path.exists({str(read)!r}):\n"
        "    time.sleep(0.01)\n"
        "print('went on', flush=True)\n"
    )
    words = ["run", "-n", "2", "--fault-tolerant", str(path)]
    with started(*words, errors=subprocess.STDOUT) as launcher:
        assert launcher.stdout is not None
        lines = iter(launcher.stdout)
        assert any(line == "localsgd: rank 1 raised:\n" for line in lines)
        assert any(line == "KeyError: 'no such batch'\n" for line in lines)
        read.touch()
        assert "went on\n" in list(lines)
        assert launcher.wait(LIMIT_S) == 0


def test_every_start_of_a_job_is_told_by_itself(tmp_path: Path) -> None:
    body = "raise KeyError(os.environ['LOCALSGD_RESTART'])"
    path = tmp_path / "job.py"
    path.write_text(f"import os\n{body}")
    ended = run("run", "-n", "1", "--restarts", "1", str(path))
    first, last = (ended.stderr.index(f"\nKeyError: '{start}'\n") for start in (0, 1))
    assert first < ended.stderr.index("rank 0 raised (exit code 1): started again, 1 of 1") < last
    assert ended.stderr.count("Traceback") == 2
