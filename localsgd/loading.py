"""How saved state is taken over: by every part on every rank, or by none on any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from localsgd.agreement import agreed_among
from localsgd.comm.base import Communicator
from localsgd.parts import Averager, Stateful


def load_together(
    comm: Communicator,
    averager: Averager,
    read: Callable[[], tuple[int, Sequence[tuple[Stateful, Mapping[str, Any]]]]],
) -> None:
    """Lets every part take over its state, and sets the averager's step. Collective.

    Args:
        comm: the ranks that load.
        averager: whose step is set.
        read: gives the step, and every part with what was saved of it; or raises.

    Raises:
        Exception: what this rank's ``read`` or a part raised.
        MismatchError: on every rank, if steps differ or loading failed on another rank.

        Whatever is raised, everything is as it was.
    """
    undo: list[Callable[[], object]] = []

    def prepare() -> int:
        step, parts = read()
        for part, saved in parts:
            previous = part.state_dict()
            part.load_state_dict(saved)
            undo.append(partial(part.load_state_dict, previous))
        undo.append(partial(setattr, averager, "step", averager.step))
        averager.step = step
        return step

    try:
        agreed_among(comm, "state dicts", prepare, lambda step: [f"step {step}"])
    except BaseException:
        for put_back in undo:
            put_back()
        raise
