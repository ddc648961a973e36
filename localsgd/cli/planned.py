"""What ``localsgd plan`` prints: the table, the recommendation and the line to paste."""

from __future__ import annotations

from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from localsgd.comm.in_words import seconds_in_words, size_in_words
from localsgd.simulate import Cluster, Machine, Model, Plan, Workload, parse_network, plan

MODELS = {
    "wall-clock": "rounds follow their step; Scaling Laws for DiLoCo (arXiv 2503.09799)",
    "per-layer": "layers leave during the step; Streaming DiLoCo (arXiv 2501.18512)",
}


def cluster_of(
    workers: int | None, hosts: str | None, network: str | None, machine: Path | None
) -> Cluster:
    """The cluster that the options name.

    Raises:
        ValueError: if they name none, or contradict each other.
    """
    if (network is None) == (machine is None):
        given = "neither" if network is None else "both"
        raise ValueError(f"there must be --network or --machine, got {given}")
    if machine is not None:
        cluster = Machine.load(machine).cluster(hosts)
    else:
        if hosts is None and workers is None:
            raise ValueError("there must be --hosts or --workers, got neither")
        assert network is not None
        cluster = Cluster.parse(hosts or f"{workers}x1", parse_network(network))
    if workers is not None and workers != cluster.size:
        raise ValueError(f"--workers must be the {cluster.size} of hosts {cluster}, got {workers}")
    return cluster


def show_plan(job: Workload, model: Model, target: float, picture: Path | None) -> None:
    """Prints the plan, and draws it if there is a path for that.

    Raises:
        TypeError, ValueError: as ``plan``.
    """
    made = plan(job, model=model, target=target)
    if picture is not None:
        from localsgd.cli.picture import draw

        draw(made, target, picture)
    Console(width=None if Console().is_terminal else 120).print(_table(made))
    click.echo(f"Model {model}: {MODELS[model]}.")
    click.echo(made.reason)
    click.echo("\n    " + made.recommended.candidate.line)


def _table(made: Plan) -> Table:
    job, cluster = made.job, made.job.cluster
    links = [
        (link, column)
        for link, size, column in (
            (cluster.host, cluster.workers, "host_bytes"),
            (cluster.between, cluster.hosts, "between_bytes"),
        )
        if link is not None and size > 1
    ]
    names = [f"bytes, {link.name}" for link, _ in links]
    table = Table("", "method", box=box.SIMPLE)
    table.add_column("settings", no_wrap=True)
    for name in ("utilisation", "wall-clock", *names):
        table.add_column(name, justify="right")
    table.title = (
        f"{job.parameters:,} {job.dtype} parameters, {cluster.size} workers on {cluster}, "
        f"{job.steps:,} steps of {seconds_in_words(job.step_time_s)}"
    )
    table.title_justify = "left"
    table.caption = "Utilisation is compute over all time; bytes are those of one worker."
    table.caption_justify = "left"
    for row in made.rows:
        taken = row is made.recommended
        table.add_row(
            ">" if taken else "",
            row.candidate.method,
            row.candidate.settings,
            f"{row.utilization:.3f}",
            seconds_in_words(row.wall_clock_s),
            *(size_in_words(getattr(row, column)) for _, column in links),
            style="bold" if taken else "",
        )
    return table
