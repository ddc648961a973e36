"""Which method to take: all of the catalogue by utilisation, time and bytes, and one of them.

The rule: the first of the catalogue, least drastic first, whose compute utilisation is at least the
target; if none has as much, the one with the most.

Two models say what a round costs in steps. ``"wall-clock"`` has the all-reduce of Scaling Laws for
DiLoCo (arXiv 2503.09799) at both levels, after the step, as this library's rounds are; of a round
that may be late only what its delay does not hide counts. ``"per-layer"`` is the link model of
Streaming DiLoCo (arXiv 2501.18512), where layers leave while others are still computed, on a link
that takes for all of them as long as that all-reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import DTypeLike

from localsgd.checks import checked_count, checked_number
from localsgd.comm.dtypes import FLOATS
from localsgd.simulate.candidates import Candidate, catalogue
from localsgd.simulate.cluster import Cluster
from localsgd.simulate.utilization import Floats, compute_utilization, positive

Model: TypeAlias = Literal["wall-clock", "per-layer"]


@dataclass(frozen=True)
class Workload:
    """What is to be trained, and where.

    Attributes:
        cluster: the workers.
        parameters: of the model.
        step_time_s: seconds of one local step, without any round.
        steps: of the whole training.
        dtype: of the parameters.
        layers: of the model; for the per-layer model alone.

    Raises:
        TypeError, ValueError: for a number that is out of range, or no dtype of floats.
    """

    cluster: Cluster
    parameters: int
    step_time_s: float
    steps: int
    dtype: DTypeLike = "float32"
    layers: int = 24

    def __post_init__(self) -> None:
        checked_count("parameters", self.parameters, at_least=1)
        positive("step_time_s", self.step_time_s)
        checked_count("steps", self.steps, at_least=1)
        checked_count("layers", self.layers, at_least=1)
        _require_floats(self.dtype)


@dataclass(frozen=True)
class Row:
    """What is expected of one candidate.

    Attributes:
        candidate: the method and its settings.
        utilization: compute time over all time, in (0, 1].
        wall_clock_s: seconds of the whole training.
        host_bytes: that a worker moves within its host in all.
        between_bytes: that a worker sends to other hosts in all.
    """

    candidate: Candidate
    utilization: float
    wall_clock_s: float
    host_bytes: int
    between_bytes: int


@dataclass(frozen=True)
class Plan:
    """All candidates, and the one to take.

    Attributes:
        job: what was planned.
        model: by which model.
        rows: from the least drastic to the most.
        recommended: one of them.
        reason: why, in a sentence.
    """

    job: Workload
    model: Model
    rows: tuple[Row, ...]
    recommended: Row
    reason: str


def plan(job: Workload, *, model: Model = "wall-clock", target: float = 0.9) -> Plan:
    """Compares the methods of the catalogue and recommends one.

        wall-clock = steps · step time / utilisation

    Args:
        job: what is to be trained, and where.
        model: "wall-clock" or "per-layer".
        target: the compute utilisation that suffices, in [0, 1].

    Raises:
        TypeError, ValueError: for a model that is none, or a target out of range.
    """
    if model not in get_args(Model):
        raise ValueError(f"model must be one of {', '.join(get_args(Model))}, got {model!r}")
    if checked_number("target", target) > 1:
        raise ValueError(f"target must be at most 1, got {target}")
    rows = tuple(_row(candidate, job, model) for candidate in _catalogue(job))
    recommended, reason = recommend(rows, target)
    return Plan(job, model, rows, recommended, reason)


def recommend(rows: Sequence[Row], target: float) -> tuple[Row, str]:
    """The first row whose utilisation is at least the target, or else that with the most, and why.

    Args:
        rows: at least one, from the least drastic to the most.
        target: a compute utilisation.
    """
    for index, row in enumerate(rows):
        if row.utilization >= target:
            has = f"its compute utilisation of {row.utilization:.2f} reaches {target:g}"
            if row.candidate.exact:
                return row, f"{row.candidate}: {has}, and it is exact."
            before = rows[index - 1]
            return row, (
                f"{row.candidate}: {has}, which no less drastic method does; the one before it, "
                f"{before.candidate}, has {before.utilization:.2f}."
            )
    most = max(rows, key=lambda row: row.utilization)
    return most, (
        f"{most.candidate}: no method's compute utilisation reaches {target:g}, and it has the "
        f"most, {most.utilization:.2f}."
    )


def sweep(job: Workload, bandwidth_bit_s: Floats, *, model: Model) -> dict[Candidate, Floats]:
    """The utilisation of every candidate for bandwidths of the outermost level that is used.

    Args:
        job: what is to be trained; the bandwidth of its outermost level does not matter.
        bandwidth_bit_s: shape ``(n,)``, bit/s.
        model: "wall-clock" or "per-layer".

    Returns:
        For every candidate an array of shape ``(n,)``.
    """
    jobs = [replace(job, cluster=_with_bandwidth(job.cluster, float(b))) for b in bandwidth_bit_s]
    return {
        candidate: _utilization(
            candidate,
            job,
            np.array([_round_s(candidate, one) for one in jobs]),
            np.array([_host_round_s(candidate, one) for one in jobs]),
            model,
        )
        for candidate in _catalogue(job)
    }


def _require_floats(dtype: DTypeLike) -> None:
    names = ", ".join(str(known) for known in FLOATS)
    try:
        known = np.dtype(dtype) in FLOATS
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"dtype must be one of {names}, got {dtype!r}")


def _catalogue(job: Workload) -> Sequence[Candidate]:
    return list(catalogue(job.steps, job.cluster.hosts, job.cluster.workers))


def _with_bandwidth(cluster: Cluster, bandwidth_bit_s: float) -> Cluster:
    if cluster.hosts > 1 and cluster.between is not None:
        return replace(cluster, between=replace(cluster.between, bandwidth_bit_s=bandwidth_bit_s))
    if cluster.host is not None:
        return replace(cluster, host=replace(cluster.host, bandwidth_bit_s=bandwidth_bit_s))
    return cluster


def _row(candidate: Candidate, job: Workload, model: Model) -> Row:
    cluster, dtype = job.cluster, job.dtype
    seconds = np.array(_round_s(candidate, job))
    on_hosts = np.array(_host_round_s(candidate, job))
    utilization = float(_utilization(candidate, job, seconds, on_hosts, model))
    part = cluster.round_of(-(-job.parameters // candidate.fragments), dtype, candidate.codec)
    parts = candidate.rounds(job.steps) * candidate.fragments
    host_rounds = candidate.host_rounds(job.steps)
    return Row(
        candidate,
        utilization,
        job.steps * job.step_time_s / utilization,
        parts * part.host_bytes
        + host_rounds * cluster.host_round(job.parameters, dtype).host_bytes,
        parts * part.between_bytes,
    )


def _round_s(candidate: Candidate, job: Workload) -> float:
    """Seconds of a round of one fragment."""
    count = -(-job.parameters // candidate.fragments)
    return job.cluster.round_of(count, job.dtype, candidate.codec).seconds


def _host_round_s(candidate: Candidate, job: Workload) -> float:
    """Seconds of a round of hosts' workers among themselves; 0 if there is none."""
    return job.cluster.host_round(job.parameters, job.dtype).seconds * bool(candidate.host_period)


def _utilization(
    candidate: Candidate, job: Workload, round_s: Floats, host_round_s: Floats, model: Model
) -> Floats:
    """Compute over all time, for rounds of a fragment that take so long, and rounds of hosts."""
    if model == "per-layer":
        return _by_layers(candidate, job, round_s, host_round_s)
    each = candidate.period / candidate.fragments
    hidden_s = candidate.delay * job.step_time_s
    lost_s = np.maximum(round_s - hidden_s, 0.0) / each
    if candidate.host_period:
        lost_s = lost_s + host_round_s * (1 / candidate.host_period - 1 / candidate.period)
    return np.asarray(job.step_time_s / (job.step_time_s + lost_s))


def _by_layers(
    candidate: Candidate, job: Workload, round_s: Floats, host_round_s: Floats
) -> Floats:
    """The same where layers leave one by one.

    The lost time of hosts' own rounds is added to that of rounds of all, as if neither hid the
    other.
    """

    def of(seconds: Floats, period: int, fragments: int, delay: int) -> Floats:
        # One bit a parameter, on a link that is as fast as that takes.
        with np.errstate(divide="ignore"):
            bandwidth = job.parameters / (seconds * fragments)
        return np.asarray(
            compute_utilization(
                "streaming",
                layers=job.layers,
                parameters=job.parameters,
                step_time_s=job.step_time_s,
                bandwidth_bit_s=bandwidth,
                period=period,
                fragments=fragments,
                delay=delay,
                bits=1,
            )
        )

    found = of(round_s, candidate.period, candidate.fragments, candidate.delay)
    if candidate.host_period:
        found = 1 / (1 / found + 1 / of(host_round_s, candidate.host_period, 1, 0) - 1)
    return found
