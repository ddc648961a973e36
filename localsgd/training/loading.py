"""How a saved training is taken over: by every part on every rank, or by none on any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from localsgd.checks import agreed_among, checked_count
from localsgd.comm.contract import Communicator
from localsgd.resizing import Resizing, SavedStates
from localsgd.training.parts import Averager, Stateful


def resized(saved: SavedStates, parts: Mapping[str, object]) -> dict[str, Any]:
    """This rank's state of a training that a group of another size or layout has saved. Collective.

    Args:
        parts: what may have a rule of its own, by the key of its entry; under "" what saves the
            whole.
    """
    state = dict(saved.own)
    for key, part in parts.items():
        if isinstance(part, Resizing) and (not key or key in state):
            found = part.resized_state(saved.at(key) if key else saved)
            state.update({key: found} if key else found)
    return state


def load_together(
    comm: Communicator,
    state_dict: Mapping[str, Any],
    averager: Averager,
    parts: Mapping[str, Stateful],
    *,
    optional: Sequence[str] = (),
) -> None:
    """Lets every part take over its entry, and sets the averager's step. Collective.

    Args:
        comm: the ranks that load.
        state_dict: with the step, 0 if there is none, as ``"step"``.
        averager: whose step is set.
        parts: what loads, by the key of its entry; under "" what loads the whole.
        optional: the keys of entries that may be missing.

    Raises:
        TypeError, ValueError: if an entry is missing or does not fit.
        MismatchError: on every rank, if steps differ or loading failed on another rank.

        Whatever is raised, everything is as it was.
    """
    undo: list[Callable[[], object]] = []

    def prepare() -> int:
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {state_dict!r}")
        step = checked_count("step", state_dict.get("step", 0), at_least=0)
        for key, part in parts.items():
            if key and key not in state_dict:
                if key in optional:
                    continue
                raise ValueError(f"state_dict must have {key!r}, got {list(state_dict)}")
            previous = part.state_dict()
            part.load_state_dict(state_dict[key] if key else state_dict)
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
