"""What torch.distributed.checkpoint does to an optimizer, and what the wrapper does about it.

It keeps state and groups of a state dict and nothing else, so the averager's step travels in a
group when it asks. And it makes an optimizer create its state by a step with learning rate and
gradients 0, before it saves or loads, which is no step of training.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from torch import Tensor

_STEP = "averager_step"
_CHECKPOINT = "torch.distributed.checkpoint.state_dict"


def with_mark(state_dict: dict[str, Any], step: int) -> dict[str, Any]:
    """The state dict, if it is for a checkpoint with the averager's step in its first group.

    Elsewhere a plain optimizer that loads it would keep the step, and save it at another one.
    """
    if not _called_by_checkpoint(sys._getframe(2)):
        return state_dict
    groups = state_dict["param_groups"]
    marked = [{**groups[0], _STEP: step}, *groups[1:]] if groups else groups
    return {**state_dict, "param_groups": marked}


def without_mark(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without that, and with the step as ``"step"`` if either place had it."""
    groups = state_dict.get("param_groups", [])
    plain = [{key: value for key, value in group.items() if key != _STEP} for group in groups]
    found = [group[_STEP] for group in groups if _STEP in group]
    given = {"step": state_dict["step"]} if "step" in state_dict else {}
    if not given and found:
        given = {"step": found[0].item() if isinstance(found[0], Tensor) else found[0]}
    return {**state_dict, "param_groups": plain, **given}


def makes_state(param_groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the step that is being taken serves to create state alone."""
    if any(group.get("lr", 1) != 0 for group in param_groups):
        return False
    return _called_by_checkpoint(sys._getframe(2))


def _called_by_checkpoint(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_globals.get("__name__") != _CHECKPOINT:
        frame = frame.f_back
    return frame is not None
