"""The subcommands and their options."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from localsgd.cli.launcher import LaunchError, find_mpirun
from localsgd.cli.supervise import CANNOT_START, run_job
from localsgd.comm import Topology
from localsgd.comm.transports import find_program

_HOST = re.compile(r"[^\s:]+(:[1-9]\d*)?")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="localsgd")
def localsgd() -> None:
    """Train one model on many workers that talk rarely."""


@localsgd.command(context_settings={"allow_interspersed_args": False})
@click.option("-n", "--ranks", type=click.IntRange(1), required=True, help="How many workers.")
@click.option("--hosts", help="Where they run, as in a:2,b:2; by default, here.")
@click.option("--layout", help="Which ranks count as sharing a host, as in 2+1, to try on one.")
@click.option("--tag-output", is_flag=True, help="Begin every line with its rank.")
@click.option("--fault-tolerant", is_flag=True, help="Go on without workers that die.")
@click.option("--respawn", is_flag=True, help="Start others in their place.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="End the job then.")
@click.option("-m", "--module", is_flag=True, help="COMMAND begins with a Python module.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def run(
    ranks: int,
    hosts: str | None,
    layout: str | None,
    tag_output: bool,
    fault_tolerant: bool,
    respawn: bool,
    timeout_s: float | None,
    module: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on MPI workers with the MPI of this environment.

    COMMAND is a Python script (anything that ends in .py) with its arguments, a module after -m,
    or any program. Everything that an MPI launch usually needs is set, but never over a setting
    of yours: running as root, more ranks than cores, waiting ranks that yield, one BLAS thread a
    rank. The exit code is the job's.
    """
    try:
        mpirun = find_mpirun()
        _check(ranks, hosts, layout)
        if respawn and not fault_tolerant:
            raise LaunchError("--respawn must come with --fault-tolerant")
        words = _words(command, module)
        job = mpirun.job(
            words,
            ranks,
            hosts=hosts,
            layout=layout,
            tag_output=tag_output,
            fault_tolerant=fault_tolerant,
            respawn=respawn,
        )
        code = run_job(job, timeout_s)
    except LaunchError as error:
        click.echo(f"localsgd: {error}", err=True)
        code = CANNOT_START
    sys.exit(code)


def _words(command: tuple[str, ...], module: bool) -> list[str]:
    """What a rank executes."""
    if module:
        return [sys.executable, "-m", *command]
    first, *arguments = command
    if first.endswith(".py"):
        if not Path(first).is_file():
            raise LaunchError(f"{first}: no such script")
        return [sys.executable, first, *arguments]
    program = find_program(first)
    if program is None:
        raise LaunchError(f"{first}: no such program, and no script, which would end in .py")
    return [program, *arguments]


def _check(ranks: int, hosts: str | None, layout: str | None) -> None:
    if hosts is not None and not re.fullmatch(
        r"([^\s,:]+(:[1-9]\d*)?,)*[^\s,:]+(:[1-9]\d*)?", hosts
    ):
        raise LaunchError(f"--hosts must look like a:2,b:2 (names, workers on each), got {hosts!r}")
    if layout is not None:
        try:
            Topology.parse(layout, ranks)
        except ValueError as error:
            raise LaunchError(f"--layout: {error}") from None


@localsgd.command()
def info() -> None:
    """Show the MPI library, how memory is shared, and versions."""
    from localsgd.cli.info import show

    show()
