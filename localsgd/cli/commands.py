"""The subcommands and their options."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from localsgd.cli.agent import Agent
from localsgd.cli.asked import (
    MISUSED,
    Misused,
    OneLine,
    check_places,
    program,
    require_one_mpi,
    say_if_crowded,
    telling_of,
)
from localsgd.cli.attempt import CANNOT_START
from localsgd.cli.launcher import Job, LaunchError, find_mpirun
from localsgd.cli.placing import Placing
from localsgd.cli.supervise import Plan, run_job
from localsgd.cli.watching import watched
from localsgd.comm.waiting import launcher
from localsgd.simulate import Faults, Model, Stragglers, Workload
from localsgd.simulate import simulate as simulated

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="localsgd")
def localsgd() -> None:
    """Train one model on many workers that talk rarely."""


@localsgd.command(cls=OneLine, context_settings={"allow_interspersed_args": False})
@click.option("-n", "--ranks", type=click.IntRange(1), help="How many workers.")
@click.option("--hosts", help="Where they run, as in a:2,b:2; by default, here.")
@click.option("--layout", help="Which ranks count as sharing a host, as in 2+1, to try on one.")
@click.option("--tag-output", is_flag=True, help="Begin every line with its rank.")
@click.option("--fault-tolerant", is_flag=True, help="Go on without workers that die.")
@click.option("--restarts", type=click.IntRange(0), default=0, help="Start it again so often.")
@click.option(
    "--host-deadline-s",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    help="A host is lost when it has not answered for so long.",
)
@click.option("--respawn", is_flag=True, help="Start others in their place.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="End the job then.")
@click.option("--telemetry", type=_FOLDER, help="Where every averager's rounds are written.")
@click.option("--timeline", type=_FILE, help="Of all ranks, as JSON for Perfetto, at the end.")
@click.option(
    "--traceback",
    "tracebacks",
    type=click.Choice(["short", "full"]),
    default="short",
    show_default=True,
    help="Whether frames of the library are shown.",
)
@click.option("-m", "--module", is_flag=True, help="COMMAND begins with a Python module.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    ranks: int | None,
    hosts: str | None,
    layout: str | None,
    tag_output: bool,
    fault_tolerant: bool,
    restarts: int,
    host_deadline_s: float,
    respawn: bool,
    timeout_s: float | None,
    telemetry: Path | None,
    timeline: Path | None,
    tracebacks: str,
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
        require_one_mpi()
        mpirun = find_mpirun()
        words, ranks = program(ranks, command, module)
        check_places(ranks, hosts, layout)
        if respawn and not fault_tolerant:
            raise LaunchError("--respawn must come with --fault-tolerant")

        def job(placing: Placing, variables: dict[str, str]) -> Job:
            return mpirun.job(
                words,
                placing.ranks,
                hosts=",".join(placing.hosts) or None,
                layout=layout,
                tag_output=tag_output,
                fault_tolerant=fault_tolerant,
                respawn=respawn,
                variables=variables,
            )

        placing, agent = Placing.parse(ranks, hosts), Agent(mpirun.library, os.environ)
        telling = telling_of(words, full=tracebacks == "full", at_once=fault_tolerant)
        say_if_crowded(ranks, hosts)
        with watched(telemetry, timeline):
            code = run_job(Plan(job, placing, agent, restarts, host_deadline_s, timeout_s, telling))
    except LaunchError as error:
        click.echo(f"localsgd: {error}", err=True)
        code = MISUSED if isinstance(error, Misused) else CANNOT_START
    sys.exit(code)


@localsgd.command(cls=OneLine)
@click.argument("name")
def new(name: str) -> None:
    """Write NAME.py, a first program to run and to change."""
    from localsgd.cli.first import write_first

    try:
        path = write_first(name)
    except LaunchError as error:
        click.echo(f"localsgd: {error}", err=True)
        sys.exit(1)
    click.echo(f"{path} is written; run it: localsgd run -n 4 {path}")


@localsgd.command()
def info() -> None:
    """Show the MPI library, how memory is shared, and versions."""
    from localsgd.cli.info import show

    show()


@localsgd.command()
@click.option("-n", "--ranks", type=click.IntRange(2), help="How many workers to start.")
@click.option("--hosts", help="Where they run, as in a:2,b:2; by default, here.")
@click.option("--layout", help="Which ranks count as sharing a host, as in 2+1, to try on one.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON for plan.")
@click.option("--largest-mib", type=click.IntRange(1), default=64, help="Of an all-reduce.")
def bench(
    ranks: int | None, hosts: str | None, layout: str | None, out: Path | None, largest_mib: int
) -> None:
    """Measure the memory of hosts and the links between them.

    Run by a launcher, as in localsgd run -n 4 localsgd bench, it measures that job's workers; by
    itself it starts some, by default one for every core.
    """
    from localsgd.cli.bench import show_machine

    if launcher() is not None:
        if (ranks, hosts, layout) != (None, None, None):
            raise click.UsageError("--ranks, --hosts and --layout are the launcher's to say")
        sys.exit(show_machine(out, largest_mib << 20))
    words = [sys.executable, "-m", "localsgd.cli", "bench", "--largest-mib", str(largest_mib)]
    if out is not None:
        words += ["--out", str(out.resolve())]
    try:
        ranks = ranks or max(2, os.cpu_count() or 2)
        check_places(ranks, hosts, layout)
        mpirun = find_mpirun()

        def job(placing: Placing, variables: dict[str, str]) -> Job:
            where = ",".join(placing.hosts) or None
            return mpirun.job(words, placing.ranks, hosts=where, layout=layout, variables=variables)

        placing, agent = Placing.parse(ranks, hosts), Agent(mpirun.library, os.environ)
        code = run_job(Plan(job, placing, agent, 0, 30.0, None))
    except LaunchError as error:
        click.echo(f"localsgd: {error}", err=True)
        code = CANNOT_START
    sys.exit(code)


@localsgd.command()
@click.option("--parameters", type=float, required=True, help="Of the model, as in 124e6.")
@click.option("--step-time", type=float, required=True, help="Seconds of one local step.")
@click.option("--steps", type=int, default=100_000, show_default=True, help="Of the training.")
@click.option("--workers", type=click.IntRange(1), help="How many, all together.")
@click.option("--hosts", help="Hosts times workers of each, as in 4x8.")
@click.option("--network", help="As in 'host=50GB/s,1us; wan=100Mbit/s,50ms', from the inside out.")
@click.option(
    "--machine",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What localsgd bench wrote, instead of --network.",
)
@click.option("--dtype", default="float32", show_default=True, help="Of the parameters.")
@click.option("--layers", type=int, default=24, show_default=True, help="Of the model.")
@click.option(
    "--model",
    type=click.Choice(["wall-clock", "per-layer"]),
    default="wall-clock",
    show_default=True,
    help="By which model of the network.",
)
@click.option(
    "--target", type=float, default=0.9, show_default=True, help="Compute utilisation to reach."
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="As a PNG.")
def plan(
    parameters: float,
    step_time: float,
    steps: int,
    workers: int | None,
    hosts: str | None,
    network: str | None,
    machine: Path | None,
    dtype: str,
    layers: int,
    model: Model,
    target: float,
    picture: Path | None,
) -> None:
    """Compare methods by compute utilisation, time and bytes, and recommend one."""
    from localsgd.cli.planned import cluster_of, show_plan

    try:
        if not parameters.is_integer():
            raise ValueError(f"--parameters must be a whole number, got {parameters:g}")
        cluster = cluster_of(workers, hosts, network, machine)
        job = Workload(cluster, int(parameters), step_time, steps, dtype, layers)
        show_plan(job, model, target, picture)
    except (OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None


@localsgd.command()
@click.argument("runs", nargs=-1, required=True, type=_FOLDER)
@click.option("--out", type=_FILE, default=Path("report.html"), show_default=True, help="The page.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Draw what telemetry has written into folders: one HTML page, and its pictures as PNGs.

    Several runs are compared. The page needs no network and no other file.
    """
    from localsgd.cli.watching import write_report

    try:
        write_report(runs, out)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


@localsgd.command()
@click.option("--workers", type=click.IntRange(1), required=True, help="How many, all together.")
@click.option("--hosts", help="As in 4x8, or 2+1; by default every worker has its own.")
@click.option(
    "--network",
    required=True,
    help="As in 'host=50GB/s,1us; wan=100Mbit/s,50ms', from the inside out.",
)
@click.option("--step-time", type=float, help="Seconds of a local step; by default, measured.")
@click.option(
    "--stragglers", type=(float, float), help="A step's chance to be slow, and seconds that adds."
)
@click.option("--lost-after", type=float, help="Mean seconds after which a worker is lost.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what goes wrong.")
@click.argument("script", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1)
def simulate(
    workers: int,
    hosts: str | None,
    network: str,
    step_time: float | None,
    stragglers: tuple[float, float] | None,
    lost_after: float | None,
    seed: int,
    script: Path,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT on simulated workers and say how long it would take on that network.

    The workers are threads of this process: world() in the script gives each its own group.
    Options of the script go after --.
    """
    from localsgd.cli.simulated import function_of, show_simulated

    try:
        found = simulated(
            function_of(script, arguments),
            workers=workers,
            hosts=hosts,
            network=network,
            step_time_s=step_time,
            stragglers=None if stragglers is None else Stragglers(*stragglers),
            faults=None if lost_after is None else Faults(lost_after),
            seed=seed,
        )
    except (OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    show_simulated(found)
