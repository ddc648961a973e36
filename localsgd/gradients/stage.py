"""Which gradient a worker steps with: the mean of all workers', of its host's, or its own.

Post-local SGD is synchronous at first: until the averager's warm-up ends, gradients are averaged
over all workers; afterwards over the host or not at all, while the averager moves parameters. The
stage reads the averager's step and its schedule's ``warmup_steps`` and counts nothing itself.

A mean is taken in place, in the memory that the ranks of a host share, and its norm is summed
while its blocks pass by. Every worker weighs what it recorded for this step (``record_samples``),
or all the same; a worker that skips the step weighs 0.

Gradients that are not finite are not looked for: they go into the mean, the norm and the step as
any other, and are not clipped. ``skip_step`` keeps them out.

Sources: Lin et al., post-local SGD (arXiv 1808.07217); Pascanu et al. (arXiv 1211.5063) for
clipping by the global norm.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Literal

import numpy as np

from localsgd.arrays import Arena, Subset
from localsgd.averagers import ModelAverager
from localsgd.checks import agreed_among, checked_number, workers_of
from localsgd.comm import NON_MEMBER, NoWeight
from localsgd.comm.contract import Array, Communicator, Update

BLOCK = 32_768


class GradientStage:
    """Averages gradients over all workers in the warm-up, and over the host or not at all later.

    Attributes:
        after: "host" or "none", whose gradients are averaged after the warm-up.
        comm: the workers.
        own_norm: the norm of this worker's gradient in the last step, before it was clipped and
            averaged; NaN unless ``max_own_norm`` is set.
        norm: that of the gradient to step with, before it was clipped; equal on all workers
            that averaged; NaN unless ``max_norm`` is set.
    """

    def __init__(
        self,
        after: Literal["host", "none"] = "none",
        comm: Communicator | None = None,
        *,
        max_own_norm: float | None = None,
        max_norm: float | None = None,
    ) -> None:
        """Collective: options must be equal on all ranks.

        Args:
            after: what becomes of gradients after the warm-up.
            comm: the workers that take part, those of the averager; None means
                ``localsgd.world()``.
            max_own_norm: the norm to which each worker's gradient is scaled down before it is
                averaged; over all parameters that are trained.
            max_norm: the same of the gradient after that, as the step takes it.

        Raises:
            TypeError, ValueError: for an invalid option.
            MismatchError: on every rank, if options differ or another rank's are invalid.
        """
        self.comm = workers_of(comm)

        def prepare() -> list[str]:
            if after not in ("host", "none"):
                raise ValueError(f"after must be 'host' or 'none', got {after!r}")
            limits = {"max_own_norm": max_own_norm, "max_norm": max_norm}
            for name, limit in limits.items():
                if limit is not None and checked_number(name, limit) == 0:
                    raise ValueError(f"{name} must be above 0, got {limit}")
            return [f"after={after!r}", *(f"{name}={limit!r}" for name, limit in limits.items())]

        agreed_among(self.comm, "gradient stages", prepare, lambda lines: lines)
        self.after, self.own_norm, self.norm = after, np.nan, np.nan
        self._max_own_norm, self._max_norm = max_own_norm, max_norm
        self._host: Communicator | None = None
        if self.comm is not NON_MEMBER:
            self.regroup()

    def __repr__(self) -> str:
        limits = {"max_own_norm": self._max_own_norm, "max_norm": self._max_norm}
        given = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
        return f"{type(self).__name__}({', '.join([repr(self.after), *given])})"

    def regroup(self) -> None:
        """Makes the group of this host anew, as when the group has lost workers. Collective."""
        if self.after == "host":
            self._host = self.comm.split(self.comm.topology.host_of[self.comm.rank])

    def group_due(self, averager: ModelAverager) -> Communicator | None:
        """The workers whose gradients this one averages in the next step; None if none's."""
        if self.comm is NON_MEMBER:
            return None
        return self.comm if averager.step < warmup_of(averager) else self._host

    def average(
        self,
        arenas: Sequence[Arena],
        averager: ModelAverager,
        *,
        skip: bool = False,
        trained: Sequence[Subset] | None = None,
    ) -> bool:
        """Makes ``arena.grad`` of every arena the gradient that the next step is to take.

            grad = Σ weight · grad / Σ weight    over the workers of ``group_due``

        Collective if there is such a group: once for each arena, after a comparison of the step,
        and once more for the norm if it is limited.

        Args:
            arenas: all arenas of the model; their gradients change in place.
            averager: counts the steps.
            skip: whether this worker's own gradient is to be thrown away.
            trained: for each arena the parameters whose gradients norms cover and limits clip;
                None for all.

        Returns:
            Whether there is a step to take: not if all workers of the group skip it.

        Raises:
            MismatchError: on every rank of the group, if steps differ, or some record samples
                and others do not.
            RankFailure: if a worker died before.
        """
        group = self.group_due(averager)
        if trained is None:
            trained = [Subset(arena, arena.names) for arena in arenas]
        limited = not (self._max_own_norm is None is self._max_norm)
        parts = [stretches_of(subset) if limited else [] for subset in trained]
        covered = [
            subset.arena.grad.flat[part]
            for subset, own in zip(trained, parts, strict=True)
            for part in own
        ]
        samples = averager.samples_of_step
        self.own_norm = self.norm = np.nan
        if skip:
            averager.take_back_samples()
            if group is None:
                return False
        elif self._max_own_norm is not None:
            self.own_norm = sqrt(sum(squares_of(flat) for flat in covered))
            clip(covered, self.own_norm, self._max_own_norm)
        squares = Squares()
        if group is not None:
            weight = 1.0 if samples is None else float(samples)
            label = f"gradients of step {averager.step + 1}"
            try:
                for arena, own in zip(arenas, parts, strict=True):
                    group.allreduce(
                        arena.grad.flat,
                        "mean",
                        weight=0.0 if skip else weight,
                        update=None if self._max_norm is None else squares.adding(own),
                        label=label if samples is None else f"{label}, weighed by samples",
                    )
            except NoWeight:
                if group is self.comm:
                    averager.forget_samples()
                return False
        if self._max_norm is not None:
            if group is None:
                squares.total = sum(squares_of(flat) for flat in covered)
            else:
                squares.sum_over(group)
            self.norm = sqrt(squares.total)
            clip(covered, self.norm, self._max_norm)
        if group is self.comm:
            averager.forget_samples()
        return True


class Squares:
    """The sum of the squares of a gradient, of which every rank of a group sees a part."""

    def __init__(self) -> None:
        self.total = 0.0

    def adding(self, parts: Sequence[slice]) -> Update:
        """An ``update`` of ``Communicator.allreduce`` that adds the squares within these parts.

        Args:
            parts: in rising order, not overlapping.
        """
        stops = [part.stop for part in parts]

        def add(block: slice, values: Array) -> None:
            for part in parts[bisect_right(stops, block.start) :]:
                if part.start >= block.stop:
                    break
                first, last = max(part.start, block.start), min(part.stop, block.stop)
                self.total += squares_of(values[first - block.start : last - block.start])

        return add

    def sum_over(self, group: Communicator) -> None:
        """Sums the ranks' totals; collective. The sum has the same bits on every rank."""
        totals = np.array([self.total])
        group.allreduce(totals, "sum", label="norm of the gradient")
        self.total = float(totals[0])


def stretches_of(subset: Subset) -> list[slice]:
    """Where in its arena's buffer some parameters lie: as few parts as there can be, rising."""
    stretches: list[slice] = []
    for name in subset.names:
        part = subset.arena.slice_of(name)
        if stretches and stretches[-1].stop == part.start:
            part = slice(stretches.pop().start, part.stop)
        stretches.append(part)
    return stretches


def warmup_of(averager: ModelAverager) -> int:
    """The steps in which gradients are averaged over all workers; 0 if the schedule names none."""
    return int(getattr(averager.schedule, "warmup_steps", 0))


def squares_of(flat: Array) -> float:
    """The sum of squares, in float64, block by block."""
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK].astype(np.float64)
            np.square(block, out=block)
            total += float(np.add.reduce(block))
    return total


def clip(gradients: Sequence[Array], norm: float, limit: float) -> None:
    """Scales gradients of this norm down to the limit; any other is left to the bit."""
    if isfinite(norm) and norm > limit:
        for flat in gradients:
            divide(flat, norm / limit)


def divide(flat: Array, divisor: float) -> None:
    """Divides in place; half precisions in float32, block by block."""
    if flat.dtype.itemsize > 2:
        flat /= divisor
        return
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        block[...] = block.astype(np.float32) / np.float32(divisor)
