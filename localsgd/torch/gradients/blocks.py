"""Gradients in blocks: which of them are reduced together, and in which order.

Backward passes complete the last parameters first, so the blocks go from the last to the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from localsgd.comm.contract import Array, Request
from localsgd.torch.arrays import Placed


@dataclass
class Block:
    """Neighbouring gradients of one dtype that are reduced together.

    Attributes:
        memory: theirs in the arena, shape ``(n,)``.
        params: theirs.
        missing: those whose gradients the backward pass has not completed yet.
        request: the reduction, once begun.
    """

    memory: Array
    params: list[Tensor]
    missing: set[int] = field(default_factory=set)
    request: Request | None = None


def blocks_of(params: Placed, block_bytes: int) -> list[Block]:
    """All gradients in blocks, those of the last parameters first."""
    order = {id(param): number for number, (param, _) in enumerate(params)}
    blocks: list[Block] = []
    for arena in params.whole_arenas:
        placed = [
            (arena.slice_of(place.name), param) for param, place in params if place.arena is arena
        ]
        placed.sort(key=lambda entry: entry[0].start)
        end, limit = -1, block_bytes // arena.dtype.itemsize
        for part, param in placed:
            full = blocks and blocks[-1].memory.size >= limit
            if part.start != end or full:
                begin = part.start
                blocks.append(Block(arena.grad.flat[part], []))
            end = part.stop
            blocks[-1].memory = arena.grad.flat[begin:end]
            blocks[-1].params.append(param)
    return sorted(blocks, key=lambda block: -max(order[id(param)] for param in block.params))
