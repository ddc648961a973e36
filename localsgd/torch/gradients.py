"""Gradients without DDP: averaged in the warm-up, and by host or not at all after it.

The memory of gradients is cut into blocks, from the last parameter to the first, in an order that
all ranks agreed on when the model was adopted. A block is reduced in the background as soon as its
gradients are complete and those before it have begun; so ranks whose gradients become ready in
different orders, or that did not use a parameter, never mix. The stage reads the averager's step,
so the length of the warm-up is typed once. All arithmetic is the communicator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Variable

from localsgd.agreement import agreed
from localsgd.checks import checked_count
from localsgd.comm.base import Array, Communicator, Request
from localsgd.torch.adoption import Adopted, adopt
from localsgd.torch.groups import of_host
from localsgd.torch.places import wait_for_devices

After = Literal["host", "none"]


@dataclass
class _Block:
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


class GradientStage:
    """Averages the gradients of a model during its backward passes.

    After ``loss.backward()`` the gradients are the means, so clipping and a ``GradScaler`` see
    what they see under DDP: in the warm-up all ranks find the same infinities and leave out the
    same steps. A parameter that no worker used in a pass keeps no gradient; one that some did not
    use counts as zero there.

    Attributes:
        averager: whose step and warm-up decide; any with ``step`` and ``warmup_steps``.
        after: what happens after the warm-up.
    """

    def __init__(
        self,
        model: nn.Module,
        averager: Any,
        *,
        after: After = "none",
        block_bytes: int = 8 << 20,
    ) -> None:
        """Adopts the model, for the averager's workers, and follows its passes. Collective.

        Args:
            model: as in ``adopt``.
            averager: of ``localsgd.torch`` or the core.
            after: "host" averages over the workers of each host, "none" nothing.
            block_bytes: about how much memory is reduced at a time.

        Raises:
            TypeError, ValueError: for an invalid argument; tied weights that are two parameters.
            MismatchError: on every rank, if arguments or models differ.
        """
        comm: Communicator = averager.comm

        def prepare() -> None:
            if after not in get_args(After):
                raise ValueError(f"after must be one of {get_args(After)}, got {after!r}")
            checked_count("block_bytes", block_bytes, at_least=1)

        agreed(comm, "gradient stages", prepare, lambda _: [f"after {after}, {block_bytes} bytes"])
        self.averager, self.after = averager, after
        self._model, self._adopted = model, adopt(model, comm)
        self._nearby = of_host(comm) if after == "host" else None
        self._blocks = _blocks(self._adopted, block_bytes)
        self._block_of = {id(param): block for block in self._blocks for param in block.params}
        self._used = np.zeros(len(self._block_of), np.int32)
        self._begun = 0
        self._synchronising = True
        self._pass: int | None = None
        self._adopted.on_gradient = self._completed

    @property
    def group(self) -> Communicator | None:
        """The workers that average the gradients of the next step; None for nobody."""
        if self.averager.step < self.averager.warmup_steps:
            return self._adopted.comm
        return self._nearby

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here only add to this rank's gradients, as in DDP's ``no_sync``."""
        before, self._synchronising = self._synchronising, False
        try:
            yield
        finally:
            self._synchronising = before

    def average(self, weight: float = 1.0) -> None:
        """Averages the gradients that there are, now; a pass outside of ``no_sync`` does it itself.

        Collective if ``group`` is not None.

        Args:
            weight: this worker's; 0 takes the mean of the others.

        Raises:
            ValueError: if a parameter requires a gradient that did not when the model was adopted.
            MismatchError, RankFailure: from the reductions.
        """
        group = self.group
        begun = 0 if self._pass is None else self._begun
        self._pass = None
        if group is None:
            return
        self._check_trainable()
        self._note_used(weight)
        for block in self._blocks[begun:]:
            self._begin(block, group, weight)
        group.allreduce(self._used, "max", label="gradients that are used")
        self._end()

    def _completed(self, param: Tensor) -> None:
        """Takes note of a gradient in place; begins the blocks that are complete, in order."""
        group = self.group if self._synchronising else None
        if group is None:
            return
        task = torch._C._current_graph_task_id()
        if self._pass not in (None, task):
            self._pass = None
            raise RuntimeError(
                "a backward pass must end before another begins, got one that failed or that "
                "holds another, as under checkpoint(use_reentrant=True)"
            )
        if self._pass is None:
            self._pass, self._begun = task, 0
            for block in self._blocks:
                block.missing = {id(member) for member in block.params}
            Variable._execution_engine.queue_callback(self.average)
        self._block_of[id(param)].missing.discard(id(param))
        while self._begun < len(self._blocks) and not self._blocks[self._begun].missing:
            self._begin(self._blocks[self._begun], group, 1.0)
            self._begun += 1

    def _begin(self, block: _Block, group: Communicator, weight: float) -> None:
        for param in block.params:
            if param.grad is None or not weight:
                self._adopted.gradient(param).zero_()
            else:
                self._adopted.bring_gradient(param)
        wait_for_devices(block.params)
        label = f"gradients of step {self.averager.step + 1}"

        def reduce(comm: Communicator) -> None:
            comm.allreduce(block.memory, "mean", weight=weight, label=label)

        block.request = group.start(reduce)

    def _note_used(self, weight: float) -> None:
        params = (param for block in self._blocks for param in block.params)
        for index, param in enumerate(params):
            self._used[index] = param.grad is not None and weight > 0

    def _end(self) -> None:
        params = []
        for block in self._blocks:
            assert block.request is not None
            block.request.wait()
            block.request = None
            params += block.params
        for param, used in zip(params, self._used.tolist(), strict=True):
            if used:
                _take(param, self._adopted.gradient(param))
            else:
                param.grad = None
        wait_for_devices(params)

    def _check_trainable(self) -> None:
        for name, param in self._model.named_parameters():
            if param.requires_grad and id(param) not in self._block_of:
                raise ValueError(
                    f"parameter {name!r} must require a gradient when the stage is made, got one "
                    "that came to require it later"
                )


def _blocks(adopted: Adopted, block_bytes: int) -> list[_Block]:
    """All gradients in blocks, those of the last parameters first."""
    order = {id(param): number for number, (param, _) in enumerate(adopted.params)}
    blocks: list[_Block] = []
    for arena in adopted.params.whole_arenas:
        placed = [
            (arena.slice_of(place.name), param)
            for param, place in adopted.params
            if place.arena is arena
        ]
        placed.sort(key=lambda entry: entry[0].start)
        end, limit = -1, block_bytes // arena.dtype.itemsize
        for part, param in placed:
            full = blocks and blocks[-1].memory.size >= limit
            if part.start != end or full:
                begin = part.start
                blocks.append(_Block(arena.grad.flat[part], []))
            end = part.stop
            blocks[-1].memory = arena.grad.flat[begin:end]
            blocks[-1].params.append(param)
    return sorted(blocks, key=lambda block: -max(order[id(param)] for param in block.params))


def _take(param: Tensor, home: Tensor) -> None:
    """Makes a gradient what its place holds."""
    if param.device.type == "cpu":
        param.grad = home
    elif param.grad is None:
        param.grad = home.to(param.device, non_blocking=True)
    else:
        param.grad.copy_(home, non_blocking=True)
