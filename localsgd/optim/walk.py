"""How a step walks over memory: in blocks that fit the cache, or in one compiled pass.

Neighbouring parameters are one stretch. No temporary has the model's size, and the float32 copies
of half precisions are made block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from localsgd.comm.compiled import LARGE_BYTES
from localsgd.comm.contract import Array
from localsgd.optim.block import Block
from localsgd.optim.param_groups import Group, Run

BLOCK = 32_768


class Rule(Protocol):
    """What is done to the numbers of a block; ``Optimizer`` says more."""

    by_parameter: ClassVar[bool]

    def update(self, group: Group, block: Block) -> None: ...

    def update_long(self, group: Group, block: Block) -> bool: ...


class Walk:
    """Takes steps of one optimizer; keeps the room to compute in from step to step."""

    def __init__(self) -> None:
        self._room: dict[np.dtype[Any], Array] = {}

    def take(
        self,
        rule: Rule,
        group: Group,
        run: Run,
        keys: Sequence[str],
        fresh: frozenset[str],
        step: int,
    ) -> None:
        """Changes a run's parameters and its state under ``keys`` by one step.

        Args:
            fresh, step: as in ``Block``.
        """
        wide, maximize = run.dtype != run.arena.dtype, bool(group.get("maximize"))
        nbytes = run.count * run.dtype.itemsize
        if nbytes >= LARGE_BYTES and not (wide or maximize or rule.by_parameter):
            params, grad = run.arena.flat[run.part], run.arena.grad.flat[run.part]
            state = {key: run.state[key] for key in keys}
            block = Block(params, grad, np.empty(0, run.dtype), state, fresh, step)
            if rule.update_long(group, block):
                return
        for part, shape in run.parameters() if rule.by_parameter else run.blocks(BLOCK):
            here = slice(part.start - run.part.start, part.stop - run.part.start)
            params, grad = run.arena.flat[part], run.arena.grad.flat[part]
            room = self._room_for(run.dtype, params.size)
            block = Block(
                params.reshape(shape),
                grad.reshape(shape),
                room[0].reshape(shape),
                {key: run.state[key][here].reshape(shape) for key in keys},
                fresh,
                step,
            )
            if wide:
                room[1], room[2] = params, grad
                block.params, block.grad = room[1].reshape(shape), room[2].reshape(shape)
            if maximize:
                np.negative(block.grad, out=block.grad)
            rule.update(group, block)
            if wide:
                params[...] = room[1]
            grad[...] = 0

    def _room_for(self, dtype: np.dtype[Any], count: int) -> Array:
        """Three rows of ``count`` numbers to compute in."""
        room = self._room.get(dtype)
        if room is None or room.shape[1] < count:
            room = self._room[dtype] = np.empty((3, max(count, BLOCK)), dtype)
        return room[:, :count]
