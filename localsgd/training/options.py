"""The options of the wrapper: valid, alike on all ranks, and what they average along."""

from __future__ import annotations

from localsgd.arrays import Buffers
from localsgd.averagers import Companion, ModelAverager
from localsgd.checks import agreed_among, words_of
from localsgd.gradients import GradientStage
from localsgd.lr import Rate
from localsgd.training.parts import InnerOptimizer
from localsgd.training.state import (
    State,
    check_policy,
    lines_of_policy,
    reseeding,
    state_companions,
)

_KINDS = {"gradients": GradientStage, "buffers": Buffers, "rate": Rate}


def companions(
    averager: ModelAverager,
    optim: InnerOptimizer,
    state: State,
    gradients: GradientStage | None,
    buffers: Buffers | None,
    rate: Rate | None,
) -> list[Companion]:
    """What takes part in a wrapper's rounds besides the parameters.

    Collective among the averager's workers; without options, too: others may have some.

    Raises:
        TypeError, ValueError, MismatchError: as ``PostLocalSGDOptimizer``.
    """
    comm = averager.comm
    given = {"gradients": gradients, "buffers": buffers, "rate": rate}

    def prepare() -> list[str]:
        check_policy(state, optim)
        reseeding(averager.guard, state, optim)
        for name, option in given.items():
            if option is not None and not isinstance(option, _KINDS[name]):
                raise TypeError(f"{name} must be a {_KINDS[name].__name__}, got {option!r}")
        if gradients is not None and gradients.comm is not comm:
            raise ValueError(
                "gradients must be averaged among the averager's workers, got "
                f"{gradients.comm!r} and {comm!r}"
            )
        words = [f"{name}={words_of(option)}" for name, option in given.items()]
        return [*lines_of_policy(state), *words]

    agreed_among(comm, "options", prepare, lambda lines: lines)
    return [*state_companions(state, optim), *([] if buffers is None else [buffers])]
