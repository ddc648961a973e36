"""Gradients without DDP: averaged in the warm-up, and by host or not at all after it.

The memory of gradients is cut into blocks, from the last parameter to the first, in an order that
all ranks agreed on when the model was adopted. Between hosts a block is reduced in the background
as soon as its gradients are complete and those before it have begun, so ranks whose gradients
become ready in different orders, or that did not use a parameter, never mix. On one host, where
that would only take the memory's bandwidth from the pass, all are reduced at its end. The stage
reads the averager's step, so the length of the warm-up is typed once. All arithmetic is the
communicator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Variable

from localsgd import averagers as core
from localsgd.checks import agreed_among, checked_count
from localsgd.comm import NON_MEMBER, NoWeight
from localsgd.comm.contract import Array, Communicator
from localsgd.gradients import warmup_of
from localsgd.torch.arrays import adopt, pin, wait_for_devices
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.comm import of_host, outside_modes
from localsgd.torch.gradients.blocks import Block, blocks_of
from localsgd.training import Holder

After = Literal["host", "none"]

_STAGES: WeakKeyDictionary[nn.Module, GradientStage] = WeakKeyDictionary()


class GradientStage:
    """Averages the gradients of a model during its backward passes.

    After ``loss.backward()`` the gradients are the means, so clipping and a ``GradScaler`` see
    what they see under DDP: in the warm-up all ranks find the same infinities and leave out the
    same steps. A parameter that no worker used in a pass keeps no gradient; one that some did not
    use counts as zero there. Every worker weighs what it recorded for the step before the pass
    (``record_samples``), or all the same.

    Attributes:
        after: what happens after the warm-up.
        on_begin: called before gradients are averaged; None for nothing.
        holder: averages them, again if that fails; None lets what it raises through.
    """

    on_begin: Callable[[], None] | None = None
    holder: Holder | None = None

    @outside_modes()
    def __init__(
        self,
        model: nn.Module,
        averager: CoreAverager | core.ModelAverager,
        *,
        after: After = "none",
        block_bytes: int = 25 << 20,
    ) -> None:
        """Adopts the model, for the averager's workers, and follows its passes. Collective.

        Args:
            model: as in ``adopt``; one stage each.
            averager: whose step and warm-up decide.
            after: "host" averages over the workers of each host, "none" nothing.
            block_bytes: about how much memory is reduced at a time.

        Raises:
            TypeError, ValueError: for an invalid argument, or a second stage of a model.
            MismatchError: on every rank, if arguments or models differ.
        """
        averager = averager.averager if isinstance(averager, CoreAverager) else averager
        comm = averager.comm

        def prepare() -> list[str]:
            if after not in get_args(After):
                raise ValueError(f"after must be one of {get_args(After)}, got {after!r}")
            checked_count("block_bytes", block_bytes, at_least=1)
            if model in _STAGES:
                raise ValueError("model must have one gradient stage, got one that has")
            return [f"after {after}, blocks of {block_bytes} bytes"]

        agreed_among(comm, "gradient stages", prepare, lambda lines: lines)
        self.after, self._comm, self._averager = after, comm, averager
        self._nearby: Communicator | None = None
        if comm is not NON_MEMBER:
            self.regroup()
        params = adopt(model, comm).params
        for arena in params.whole_arenas:
            arena.add_grad()
            if any(param.device.type != "cpu" for param, _ in params):
                pin(arena.grad.flat)
        self._model = ref(model)
        self._homes = {id(param): place.gradient() for param, place in params}
        self._blocks = blocks_of(params, block_bytes)
        self._block_of = {id(param): block for block in self._blocks for param in block.params}
        self._used = np.zeros(len(self._homes), np.int32)
        self._synchronising, self._averaged = True, False
        # Of the pass that goes on: its number, the blocks begun, this worker's weight, its name.
        self._pass: int | None = None
        self._begun, self._weight, self._label = 0, 1.0, ""
        _STAGES[model] = self
        # Weakly: the collector of garbage does not see through torch's hooks, and the stage has the
        # parameters.
        myself = ref(self)

        def completed(param: Tensor) -> None:
            stage = myself()
            if stage is not None:
                stage._completed(param)

        for param, _ in params:
            # type: torch does not annotate it
            param.register_post_accumulate_grad_hook(completed)  # type: ignore[no-untyped-call]

    def regroup(self) -> None:
        """Makes the group of this host anew, as when the group has lost workers. Collective."""
        if self.after == "host":
            self._nearby = of_host(self._comm)

    @property
    def memory(self) -> Sequence[Array]:
        """The memory of all gradients, where they are averaged."""
        return [block.memory for block in self._blocks]

    @property
    def group(self) -> Communicator | None:
        """The workers that average the gradients of the next step; None for nobody."""
        if self._comm is NON_MEMBER:
            return None
        return self._comm if self._averager.step < warmup_of(self._averager) else self._nearby

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here only add to this rank's gradients, as in DDP's ``no_sync``."""
        before, self._synchronising = self._synchronising, False
        try:
            yield
        finally:
            self._synchronising = before

    @outside_modes()
    def average(self, *, skip: bool = False) -> bool:
        """Averages the gradients that there are, now; a pass outside of ``no_sync`` does it itself.

        Collective if ``group`` is not None. For clipping this rank's own gradient first.

        Args:
            skip: whether this worker's own gradients are to be thrown away.

        Returns:
            Whether there is a step to take: not if all workers of the group skip it.

        Raises:
            TypeError: for a gradient that is not dense.
            ValueError: if a parameter requires a gradient that did not when the stage was made.
            MismatchError, RankFailure: from the reductions.
        """
        group, self._averaged = self.group, True
        if group is not None and self._pass is None:
            self._begin_pass()
        self._pass = None
        if skip:
            self._averager.take_back_samples()
            self._weight = 0.0
        if group is None:
            return not skip
        self._check_trainable()
        params = [param for block in self._blocks for param in block.params]
        self._used[:] = [param.grad is not None and not skip for param in params]
        reductions = [self._prepared(block) for block in self._blocks[self._begun :]]
        reduce = partial(self._reduce, reductions)
        try:
            used = reduce() if self.holder is None else self.holder.hold(reduce)
        except NoWeight:
            return False
        for param, is_used in zip(params, used.tolist(), strict=True):
            _give(param, self._homes[id(param)].tensor if is_used else None)
        wait_for_devices(params)
        if group is self._comm:
            self._averager.forget_samples()
        return True

    def _reduce(self, reductions: Sequence[Callable[[Communicator], None]]) -> Array:
        """Reduces what is left of a pass; returns which gradients are used by any worker."""
        for block in self._blocks[: self._begun]:
            assert block.request is not None
            block.request.wait()
        group, used = self.group, self._used.copy()
        assert group is not None
        for reduction in reductions:
            reduction(group)
        group.allreduce(used, "max", label="gradients that are used")
        return used

    def check_step(self) -> None:
        """Before a step: raises if no pass since the last one could be followed.

        Raises:
            ValueError: if a parameter requires a gradient that did not when the stage was made.
        """
        if self.group is not None and not self._averaged:
            self._check_trainable()
        self._averaged = False

    def _begin_pass(self) -> None:
        if self.on_begin is not None:
            self.on_begin()
        samples = self._averager.samples_of_step
        self._begun, self._weight = 0, 1.0 if samples is None else float(samples)
        self._label = f"gradients of step {self._averager.step + 1}"
        if samples is not None:
            self._label += ", weighed by samples"
        for block in self._blocks:
            block.missing = {id(param) for param in block.params}

    def _end_pass(self) -> None:
        self.average()

    def _completed(self, param: Tensor) -> None:
        """Takes note of a gradient that is complete; begins those blocks that are, in order."""
        group = self.group if self._synchronising else None
        if group is None:
            return
        number = torch._C._current_graph_task_id()
        if self._pass not in (None, number):
            self._pass = None
            raise RuntimeError(
                "a backward pass must end before another begins, got one that failed or that "
                "holds another, as under checkpoint(use_reentrant=True)"
            )
        if self._pass is None:
            self._begin_pass()
            self._pass = number
            Variable._execution_engine.queue_callback(self._end_pass)
        self._bring(param)
        self._block_of[id(param)].missing.discard(id(param))
        # What is reduced in the background cannot be put back when a worker is lost in it.
        if len(group.topology.hosts) == 1 or self.holder is not None:
            return
        while self._begun < len(self._blocks) and not self._blocks[self._begun].missing:
            block = self._blocks[self._begun]
            block.request = group.start(self._prepared(block))
            self._begun += 1

    def _prepared(self, block: Block) -> Callable[[Communicator], None]:
        """The reduction of a block whose gradients are in place from here on."""
        for param in block.params:
            if param.grad is None:
                self._homes[id(param)].tensor.zero_()
            else:
                self._bring(param)
        wait_for_devices(block.params)
        label, weight = self._label, self._weight

        def reduce(comm: Communicator) -> None:
            comm.allreduce(block.memory, "mean", weight=weight, label=label)

        return reduce

    def _bring(self, param: Tensor) -> None:
        """Makes the home hold the gradient, and the gradient, on the CPU, lie there."""
        found, home = param.grad, self._homes[id(param)]
        assert found is not None
        if found.layout is not torch.strided:
            raise TypeError(f"gradients must be dense to be averaged, got one of {found.layout}")
        if home.holds(found):
            return
        if found.dtype != home.tensor.dtype:
            raise TypeError(
                f"gradients must be of {home.tensor.dtype}, as their parameters when the stage was "
                f"made, got one of {found.dtype}"
            )
        home.tensor.copy_(found.detach(), non_blocking=True)
        if found.device.type == "cpu":
            param.grad = home.tensor

    def _check_trainable(self) -> None:
        model = self._model()
        for name, param in () if model is None else model.named_parameters():
            if param.requires_grad and id(param) not in self._homes:
                raise ValueError(
                    f"parameter {name!r} must require a gradient when the stage is made, got one "
                    "that came to require it later"
                )


def _give(param: Tensor, home: Tensor | None) -> None:
    """Makes a parameter's gradient what its home holds; None for no gradient."""
    if home is None or param.device.type == "cpu":
        param.grad = home
    elif param.grad is None:
        param.grad = home.to(param.device, non_blocking=True)
    else:
        param.grad.copy_(home, non_blocking=True)
