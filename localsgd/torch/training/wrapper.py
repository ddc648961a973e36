"""One optimizer to step: the local step, then whatever the averager does after it.

To torch and its libraries this is an ``Optimizer``: it has hooks, can be copied and pickled, and
takes a closure. It owns nothing: groups, state and defaults are the inner optimizer's, read
through at every use, and the step is the averager's.

Source: torch.distributed.optim.PostLocalSGDOptimizer (PyTorch 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from localsgd import averagers as core
from localsgd.averagers import Companion
from localsgd.checks import caller_level
from localsgd.comm import NON_MEMBER
from localsgd.resizing import SavedStates
from localsgd.torch.arrays import ModuleBuffers, check_optimizer
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.gradients import GradientStage
from localsgd.torch.training.checkpointing import makes_state, with_mark, without_mark
from localsgd.torch.training.options import companions
from localsgd.torch.training.replicas import warn_of_ddp
from localsgd.torch.training.scaling import local_step
from localsgd.torch.training.state import Forgetful, TorchState
from localsgd.torch.training.uneven import TorchUnevenEnds
from localsgd.training import Averager, Holder, State, Stateful, load_together, resized


class PostLocalSGDOptimizer(Optimizer):
    """Steps an optimizer, then lets an averager count the step and average when due.

    Attributes:
        optim: the inner optimizer.
        averager: the averager; its ``step`` is the only counter.
        gradients: the stage that averages gradients; None if there is none.
        survival: holds rounds, again if they fail; None lets what they raise through.
    """

    def __init__(
        self,
        optim: Optimizer,
        averager: Averager | core.ModelAverager,
        *,
        gradients: GradientStage | None = None,
        state: State = "local",
        buffers: ModuleBuffers | None = None,
    ) -> None:
        """Takes everything as it is; collective with ``state`` or ``buffers``.

        Args:
            optim: an optimizer of torch, or one like it.
            averager: one of ``localsgd.torch``, any of the core, torch's own, or anything with
                ``step`` and ``average_parameters(params)``.
            gradients: averages the gradients, so that ``skip_step`` can take part in that.
            state: what every round and flush does to the inner optimizer's state: "local" leaves
                it to each worker, "mean" averages it along with the parameters (the steps behind
                it must then be equally many), "reset" makes the optimizer begin anew. Or for some
                keys of it the rounds that average them, as in ``{"exp_avg": every(48)}``.
            buffers: ``adopt(model).buffers``, averaged along, each by its rule.

        Raises:
            TypeError: for an averager without those; an optimizer that shards, is DeepSpeed's or
                has state of fewer than 32 bits; parameters that are shards; or options with an
                averager that is none of ``localsgd``.
            ValueError: for an optimizer that cannot honour the policy, or without such a key.
            MismatchError: on every rank, if options differ or those of another rank are invalid.
        """
        check_optimizer(optim)
        if isinstance(averager, core.ModelAverager):
            averager = CoreAverager(averager)
        if not isinstance(averager, Averager):
            raise TypeError(
                f"averager must have step and average_parameters(params), got {averager!r}"
            )
        # The base's own initialiser would take parameters; this makes its tables of hooks.
        self.__setstate__({"optim": optim, "averager": averager})
        self.gradients, self._along = gradients, companions(optim, averager, state, buffers)

    optim: Optimizer
    averager: Averager
    gradients: GradientStage | None = None
    survival: Holder | None = None
    _along: Sequence[Companion] = ()
    _ends: TorchUnevenEnds | None = None

    # type: attributes of the base that are the inner optimizer's here, whatever it does to them
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups, the same list."""
        return self.optim.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optim.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's state, the same object."""
        return self.optim.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's defaults, the same object; nothing where it has none."""
        return getattr(self.optim, "defaults", {})

    @property
    def along(self) -> Sequence[Companion]:
        """What is averaged with the parameters."""
        return self._along

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one local step with the gradients, then averages when due.

        Collective when due. Under a ``GradScaler`` that found no finite gradients on this rank,
        the local step is left out, and counted all the same.

        Args:
            closure: computes the loss and the gradients, as often as the optimizer asks.

        Returns:
            What the inner optimizer's step returned: the closure's loss.

        Raises:
            MismatchError, RankFailure: from the round; the local step is taken by then and the
                averager has not counted it.
        """
        for hook in self._optimizer_step_pre_hooks.values():
            changed = hook(self, (closure,), {})
            if changed is not None:
                (closure, *_), _ = changed
        if self.gradients is not None and closure is None:
            self.gradients.check_step()
        counts = not makes_state(self.param_groups)
        # A closure may be what gives lazy parameters their memory.
        if counts and (closure is None or self._goes_from_somewhere()):
            self._begin()
        loss = local_step(self.optim, closure, vars(self))
        if counts:
            if self._ends is not None:
                self._ends.tell_step()
            self._count()
        for post_hook in self._optimizer_step_post_hooks.values():
            post_hook(self, (closure,), {})
        return loss

    # Hooks are run above: torch would wrap the step to run them, at 10 µs a step, and those for
    # all optimizers, which the inner one runs, twice.
    step.hooked = True  # type: ignore[attr-defined]

    def skip_step(self) -> None:
        """Counts a step that this rank does not take, so that it stays in step with the others.

        Collective when due, and when gradients are averaged: this rank then gives none, takes
        the others' mean and the same step, so that replicas stay equal. The samples recorded
        for the step are taken back. For a loop that leaves
        out steps by itself; a ``GradScaler``'s are counted already.
        """
        self.optim.zero_grad()
        takes_step = self.gradients is not None and self.gradients.average(skip=True)
        self._begin()
        if takes_step:
            self.optim.step()
        if self.gradients is None and isinstance(self.averager, CoreAverager):
            self.averager.averager.take_back_samples()
        if self._ends is not None:
            self._ends.tell_step()
        self._count()

    @contextmanager
    def uneven(self) -> Iterator[None]:
        """Lets workers take different numbers of steps; at its end all hold equal parameters.

            with optimizer.uneven():
                for batch in batches:      # of any number, none included
                    …
                    optimizer.step()

        Collective, at equal steps; without DDP. ``localsgd.training.uneven`` says what workers
        without data do and what each weighs.

        Raises:
            TypeError: for an averager that is not one of ``localsgd``.
            ValueError: if entered twice, or where workers may be lost (``Survival``).
            MismatchError: on every rank, if ranks stand at different steps, or those with data
                do different things.
            RankFailure: on the others, if a rank fails before all have left.
        """
        if not isinstance(self.averager, CoreAverager):
            raise TypeError(f"uneven() must have an averager of localsgd, got {self.averager!r}")
        if self._ends is not None:
            raise ValueError("uneven() must not be entered twice, got a second time")
        if self.survival is not None:
            raise ValueError("uneven() must be without a Survival, got one")
        if self.averager.comm is NON_MEMBER:
            yield
            return
        self._ends = TorchUnevenEnds(self.optim, self.averager, self.gradients, self._along)
        try:
            yield
            self._ends.answer()
        finally:
            self._ends.end()
            self._ends = None

    def flush(self) -> None:
        """Averages now, as before validating or saving; counts no step. Collective.

        Raises:
            TypeError: if the averager cannot.
        """
        flush = getattr(self.averager, "flush", None)
        if flush is None:
            raise TypeError(f"averager must have flush(params), got {self.averager!r}")
        if self._ends is not None:
            self._ends.tell_flush()
        arguments = (self.param_groups, self._along) if self._along else (self.param_groups,)
        if self.survival is None:
            self._follow(flush(*arguments))
        else:
            self._follow(self.survival.hold(lambda: flush(*arguments)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or sets them to zero."""
        self.optim.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Trains further parameters, and averages them from the next round on."""
        self.optim.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner state dict, the averager's counter as ``"step"``, its state as ``"averager"``.

        ``"averager"`` is absent if the averager has no ``state_dict``.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state: dict[str, Any] = {**self.optim.state_dict(), "step": self.averager.step}
        state = with_mark(state, self.averager.step)
        if isinstance(self.averager, Stateful):
            state["averager"] = self.averager.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state)
            state = state if changed is None else changed
        return state

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """This rank's state of one that a group of another size or layout has saved. Collective.

        Of states with arrays for tensors, as ``localsgd.torch.Checkpoints`` reads them. The inner
        optimizer goes on as that of a rank that saved.
        """
        core = self.averager
        if isinstance(core, CoreAverager):
            core = core.averager
        return resized(saved, {"": self.optim, "averager": core})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a ``state_dict``, of this class or of a plain optimizer.

        Warns:
            UserWarning: if it has no step counter, which is then 0; or if it was saved by an
                averager with another schedule.

        Raises:
            Exception: what the inner optimizer raises, or TypeError or ValueError for a step or
                an averager's state that does not fit; then nothing has changed.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        state_dict = without_mark(state_dict)
        # type: torch's optimizers ask for a dict, which is what they get
        parts: dict[str, Any] = {"": self.optim}
        if isinstance(self.averager, Stateful):
            parts["averager"] = self.averager
        # Each rank by itself, as torch's optimizers; rounds find ranks that loaded other steps.
        load_together(NON_MEMBER, state_dict, self.averager, parts, optional=("averager",))
        if isinstance(self.averager, CoreAverager) and "averager" not in state_dict:
            self.averager.forget_samples()
        if "step" not in state_dict:
            warnings.warn(
                "Loaded state dict does not contain a step counter for an averager. "
                "Setting step counter to 0.",
                stacklevel=caller_level(),
            )
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """The inner optimizer and the averager; what else there is belongs to one model."""
        if self.gradients is not None or self._along:
            raise TypeError(
                "a wrapper can be copied or pickled if it has no gradients, state or buffers, got "
                "one that has: make another and load its state_dict()"
            )
        return {"optim": self.optim, "averager": self.averager}

    def __repr__(self) -> str:
        return repr(self.optim)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells a ``GradScaler`` to call ``step`` even where it found infinities.

        It then leaves ``found_inf`` and ``grad_scale`` here for the time of the call.
        """
        return True

    def _goes_from_somewhere(self) -> bool:
        """Whether the averager must know the parameters before the first step changes them."""
        return isinstance(self.averager, CoreAverager) and not self.averager.averager.begun

    def _begin(self) -> None:
        """Lets the averager know the parameters that training begins with."""
        if isinstance(self.averager, CoreAverager) and not self.averager.begun:
            if self.averager.comm is not NON_MEMBER:
                warn_of_ddp(self.param_groups, self.averager.comm)
            self.averager.begin(self.param_groups)

    def _count(self) -> None:
        """Lets the averager count the step and average when due."""
        if self.survival is None or not isinstance(self.averager, CoreAverager):
            self._follow(self._average())
            return
        core = self.averager.averager
        group = core.group_due(core.step + 1)
        self._follow(self.survival.hold(self._average) if core.is_due() else self._average())
        if group is core.comm:
            self.survival.welcome()

    def _average(self) -> object:
        if not self._along:
            return self.averager.average_parameters(params=self.param_groups)
        assert isinstance(self.averager, CoreAverager)
        return self.averager.average_parameters(self.param_groups, self._along)

    def _follow(self, held: object) -> None:
        """After a round that this worker was left out of, makes its optimizer begin anew.

        Unless the round has given it the others' state.
        """
        if not held or not isinstance(self.averager, CoreAverager):
            return
        given = any(isinstance(entry, TorchState) for entry in self._along)
        if self.averager.averager.left_out and not given:
            Forgetful(self.optim).reset_state()
