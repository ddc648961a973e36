"""What a worker's data is to the others', learned in rounds: the control variates of SCAFFOLD.

With c_i the worker's control variate, c their mean, and K steps of rate eta from x to y_i:

    y_i   = y_i - eta (g_i - c_i + c)
    c_i   = c_i - c + (x - y_i) / (K eta)         c = mean of c_i         x = mean of y_i

Only d_i = c_i - c is needed, and neither x nor c is sent. The means of both rows differ by
mean(d_i) = 0, so with y the mean of all y_i:

    d_i = d_i + (y - y_i) / (K eta)

K eta is the sum of the rates of the steps since the last round. A step that a worker skips counts
as one whose gradient was d_i, so that the sum is one on all workers and the mean of d_i stays 0.

Source: Karimireddy et al., SCAFFOLD (arXiv 1910.06378), option II with all workers and a server
rate of 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from localsgd.averagers import ModelAverager
from localsgd.comm.contract import Array, Communicator


class Corrected(Protocol):
    """A local optimizer that takes its steps by gradients less control variates, which it keeps."""

    def params(self) -> Sequence[Array]:
        """The parameters, on the memory that rounds change."""

    def controls(self) -> Sequence[Array]:
        """The control variates, shaped as those."""

    def replace_controls(self, controls: Sequence[Array]) -> None:
        """Takes these arrays, shaped as those, for the control variates."""


class ControlVariates:
    """A companion: rounds in which it takes part are those in which a worker learns.

    Attributes:
        sum_of_rates: the sum of the learning rates of the local steps since the last round.
    """

    def __init__(self, corrected: Corrected) -> None:
        self.sum_of_rates = 0.0
        self._corrected = corrected
        self._before: list[Array] = []

    def count(self, rate: float, averager: ModelAverager) -> None:
        """Adds the learning rate of the step that the averager counts next, if it is a local one.

        In a warm-up workers stay together by averaged gradients, and there is nothing to learn.
        """
        if averager.step >= int(getattr(averager.schedule, "warmup_steps", 0)):
            self.sum_of_rates += rate

    @property
    def words(self) -> str:
        return f"control variates after a sum of rates of {self.sum_of_rates!r}"

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Remembers where this worker stands.

        Raises:
            ValueError: if workers are weighed, for which the variates would not cancel.
            MismatchError: on every rank, if some are.
        """
        if weight is not None:
            # Those that are not weighed are told, as they do something else.
            group.collect(weight)
            raise ValueError(
                f"workers must weigh equally under SCAFFOLD, got weight {weight}: record no "
                "samples, and let all take equally many steps"
            )
        self._before = [values.copy() for values in self._corrected.params()]

    def join(self, group: Communicator, weight: float | None) -> None:
        learned, self._before = self._before, []
        if not self.sum_of_rates:
            return
        corrected = self._corrected
        for control, values, after in zip(
            corrected.controls(), learned, corrected.params(), strict=True
        ):
            # In the memory of what was remembered, which becomes that of the variate.
            np.subtract(after, values, out=values)
            values /= values.dtype.type(self.sum_of_rates)
            values += control
        corrected.replace_controls(learned)
        self.sum_of_rates = 0.0


def check_plain(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError unless these are groups of SGD for which the formula holds.

    Momentum and rates of one's own move a parameter by something else than the sum of rates says,
    ``maximize`` turns the sign of the move, and nobody differentiates through a round.
    """
    wanted = ("momentum", "maximize", "differentiable")
    rates = {float(group["lr"]) for group in groups}
    if len(rates) > 1 or any(group.get(name) for group in groups for name in wanted):
        given = [
            {name: group[name] for name in ("lr", *wanted) if group.get(name)} for group in groups
        ]
        raise ValueError(
            "SCAFFOLD must have SGD at one learning rate, without momentum, maximize and "
            f"differentiable, got {given}"
        )
