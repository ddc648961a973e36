"""What an algorithm sees of a model: some numbers of one group, and room to compute in."""

from __future__ import annotations

from dataclasses import dataclass

from localsgd.comm.contract import Array


@dataclass
class Block:
    """A stretch of numbers of one group, small enough for the cache, or one parameter.

    All arrays have shape ``(n,)``, or that of the parameter if the algorithm works
    ``by_parameter``, and the dtype in which the arithmetic is done.

    Attributes:
        params: the parameters; changed in place.
        grad: their gradients; may be overwritten, and is zero after the step.
        scratch: room for intermediate values.
        state: the arrays that the algorithm keeps, by key; changed in place.
        fresh: the keys whose arrays were made in this step, and hold zeros.
        step: the number of this step for the group, from 1; 0 unless the algorithm counts.
    """

    params: Array
    grad: Array
    scratch: Array
    state: dict[str, Array]
    fresh: frozenset[str]
    step: int
