"""What becomes of workers' copies of a fragment: weights, guards, the merge, the outer step.

Pure and deterministic: copies are combined in the order of ranks, with the arithmetic of a round.

    w     = tokens · (tokens / steps)            of a worker since its last merge
    delta = anchor - copy                        weighted mean, or directions and norms apart
    next  = outer(anchor, delta)

Source: Decoupled DiLoCo (arXiv 2604.21428).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from localsgd.averagers import step_to_mean, step_whole
from localsgd.checks import checked_number
from localsgd.comm.contract import Array
from localsgd.comm.dtypes import all_finite, work_dtype
from localsgd.comm.reduction import shifted_mean
from localsgd.outer import OuterOptimizer

How: TypeAlias = Literal["directions", "mean"]


@dataclass(frozen=True)
class Merging:
    """How copies become one.

    Attributes:
        how: "directions" averages of every tensor directions and norms apart
            (``DirectionalAverager``); "mean" takes the weighted mean.
        plain: the parameters that take the mean all the same; embeddings in the paper.
        farthest: how many times the median of the others' norms a worker's delta may have; one
            that is longer is left out. Looked at where there are at least three. None: any.
    """

    how: How = "directions"
    plain: Sequence[str] = ()
    farthest: float | None = 100.0

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: for what is no way to merge.
        """
        if self.how not in get_args(How):
            raise ValueError(f"merging must be one of {', '.join(get_args(How))}, got {self.how!r}")
        if isinstance(self.plain, str) or not all(isinstance(name, str) for name in self.plain):
            raise TypeError(f"plain must be names of parameters, got {self.plain!r}")
        if self.farthest is not None:
            checked_number("farthest", self.farthest, at_least=1.0)


@dataclass(frozen=True)
class Copy:
    """A worker's copy of a fragment.

    Attributes:
        rank, step: whose it is, and after which of its steps.
        tokens, steps: what the worker has seen and done since its last merge.
        parts: the numbers, for every arena that the fragment lies in; shapes ``(n,)``.
    """

    rank: int
    step: int
    tokens: int
    steps: int
    parts: Sequence[Array] = field(repr=False)

    @property
    def weight(self) -> float:
        """``tokens · (tokens / steps)``."""
        return self.tokens * (self.tokens / self.steps) if self.steps else 0.0


class Merged:
    """The merged state of one fragment: its anchor, and what the outer optimizer keeps.

    Attributes:
        arrays: for every part the anchor under "anchor", and the optimizer's state.
        steps: how many outer steps were taken.
    """

    def __init__(
        self,
        parts: Sequence[Array],
        tensors: Sequence[Mapping[str, slice]],
        outer: OuterOptimizer | None,
        merging: Merging,
    ) -> None:
        """
        Args:
            parts: the anchor; copied.
            tensors: where each parameter lies in each part.
        """
        self._outer, self._merging = outer, merging
        self._tensors = [
            [part for name, part in of.items() if name not in set(merging.plain)] for of in tensors
        ]
        self.steps = 0
        self.arrays: list[dict[str, Array]] = []
        for part in parts:
            kept = () if outer is None else outer.kept
            made = {key: np.zeros(part.size, work_dtype(part.dtype)) for key in kept}
            self.arrays.append({"anchor": part.copy(), **made})

    @property
    def anchor(self) -> list[Array]:
        """The fragment as it was last merged."""
        return [arrays["anchor"] for arrays in self.arrays]

    def left_out(self, copies: Sequence[Copy]) -> dict[int, str]:
        """Who must not take part, and why, by rank."""
        found = {
            copy.rank: "its parameters are not finite"
            for copy in copies
            if not all(all_finite(part) for part in copy.parts)
        }
        rest = [copy for copy in copies if copy.rank not in found]
        most = self._merging.farthest
        if most is None or len(rest) < 3:
            return found
        norms = {copy.rank: self._distance(copy) for copy in rest}
        for rank, norm in norms.items():
            usual = median(other for its, other in norms.items() if its != rank)
            if norm > most * usual > 0:
                found[rank] = f"its delta has norm {norm:.3g}, the others' median is {usual:.3g}"
        return found

    def take(self, copies: Sequence[Copy]) -> None:
        """Merges copies, in this order; where nobody weighs anything, all weigh equally."""
        weights = [copy.weight for copy in copies]
        if not any(weights):
            weights = [1.0] * len(copies)
        outer = None if self._outer is None else self._outer.snapshot()
        if outer is not None:
            outer.begin_round()
        self.steps += 1
        for index, arrays in enumerate(self.arrays):
            parts = [copy.parts[index] for copy in copies]
            if self._merging.how == "mean" or not self._tensors[index]:
                mean = shifted_mean(parts, weights)
                if outer is None:
                    arrays["anchor"][...] = mean
                else:
                    step_to_mean(outer, arrays, mean, self.steps)
                continue
            moved = directional(arrays["anchor"], parts, weights, self._tensors[index])
            if outer is None:
                arrays["anchor"] -= moved
            else:
                step_whole(outer, arrays, moved, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Copies of it; of the anchor, too."""
        arrays = [{key: array.copy() for key, array in of.items()} for of in self.arrays]
        return {"steps": self.steps, "arrays": arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: if it does not fit; then nothing has changed.
        """
        saved = state_dict["arrays"]
        shapes = [{key: array.shape for key, array in of.items()} for of in self.arrays]
        found = [{key: np.shape(array) for key, array in of.items()} for of in saved]
        if found != shapes:
            raise ValueError(f"a saved fragment must have arrays of {shapes}, got {found}")
        self.steps = state_dict["steps"]
        for mine, theirs in zip(self.arrays, saved, strict=True):
            for key, array in mine.items():
                array[...] = theirs[key]

    def _distance(self, copy: Copy) -> float:
        pairs = zip(self.anchor, copy.parts, strict=True)
        return float(np.sqrt(sum(_norm(anchor - part) ** 2 for anchor, part in pairs)))


def directional(
    anchor: Array, parts: Sequence[Array], weights: Sequence[float], tensors: Sequence[slice]
) -> Array:
    """What workers have moved, v = anchor - part, merged tensor by tensor; shape ``(n,)``.

        (Σ w |v| / Σ w) · φ(Σ w φ(v) / Σ w)        φ(x) = x / |x|,  φ(0) = 0

    The weighted mean where directions cancel to 0, and outside the tensors. One worker's move is
    what it is, to the bit.
    """
    if len(parts) == 1:
        return _narrow(anchor - parts[0], anchor)
    moved = _narrow(anchor - shifted_mean(parts, weights), anchor)
    total = sum(weights)
    for place in tensors:
        start = anchor[place]
        norm, direction = 0.0, np.zeros(start.size, np.float64)
        for part, weight in zip(parts, weights, strict=True):
            own = (start - part[place]).astype(np.float64)
            length = _norm(own)
            if length and weight:
                norm += weight * length
                direction += weight / length * own
        length = _norm(direction)
        # What is left of directions that cancel is rounding.
        if length > total * start.size * np.finfo(np.float64).eps:
            moved[place] = direction * (norm / total / length)
    return moved


def _narrow(values: Array, like: Array) -> Array:
    made: Array = values.astype(like.dtype, copy=False)
    return made


def _norm(values: Array) -> float:
    """The Euclidean norm, computed in float64."""
    return float(np.sqrt(np.square(values, dtype=np.float64).sum()))
