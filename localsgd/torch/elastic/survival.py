"""Survival of torch's trainings: the core's, told what a round may change of torch's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch.optim import Optimizer

from localsgd import elastic as core
from localsgd.arrays import Arena
from localsgd.averagers import ModelAverager
from localsgd.comm.contract import Array
from localsgd.elastic import Trained
from localsgd.torch.arrays import ModuleBuffers, with_arrays, with_tensors
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.comm import outside_modes
from localsgd.torch.training import PostLocalSGDOptimizer
from localsgd.training import Holder, Stateful


class Survival(core.Survival):
    """As ``localsgd.Survival``, of an optimizer of ``localsgd.torch``.

        training = localsgd.torch.DiLoCo(torch.optim.AdamW(model.parameters()), 500)
        survival = Survival(training, sampler)

    On MPI; not where a model is under ``DistributedDataParallel``, whose groups do not survive.
    Gradients that a ``GradientStage`` averages are averaged at the end of the backward pass then,
    between hosts, too.
    """

    def _of(self, training: Any) -> Trained:
        return TrainedTensors(training)


class TrainedTensors:
    """A ``PostLocalSGDOptimizer`` over torch's parameters."""

    def __init__(self, training: PostLocalSGDOptimizer) -> None:
        """
        Raises:
            TypeError: if it is none, or its averager is none of ``localsgd``.
        """
        if not isinstance(training, PostLocalSGDOptimizer):
            raise TypeError(f"training must be an optimizer of localsgd.torch, got {training!r}")
        if not isinstance(training.averager, CoreAverager):
            raise TypeError(
                f"training must have an averager of localsgd, got {training.averager!r}"
            )
        self._training, self._wrapped = training, training.averager

    @property
    def averager(self) -> ModelAverager:
        return self._wrapped.averager

    @property
    def arenas(self) -> Sequence[Arena]:
        return self._wrapped.arenas()

    def arrays(self) -> Sequence[Array]:
        gradients = self._training.gradients
        found = [arena.flat for arena in self.arenas]
        return found if gradients is None else [*found, *gradients.memory]

    def states(self) -> Mapping[str, Stateful]:
        found: dict[str, Stateful] = {}
        for number, companion in enumerate(self._training.along):
            if isinstance(companion, ModuleBuffers):
                found[f"buffers {number}"] = companion
            else:
                found["optim"] = _Copied(self._training.optim)
        return found

    def be_held_by(self, holder: Holder) -> None:
        self._training.survival = holder
        if self._training.gradients is not None:
            self._training.gradients.holder = holder

    def regroup(self) -> None:
        if self._training.gradients is not None:
            self._training.gradients.regroup()

    def check_growing(self) -> None:
        if self._training.gradients is not None:
            raise ValueError("a GradientStage must be without --respawn, got one with it")

    def begin(self) -> None:
        self._wrapped.begin(self._training.param_groups)

    def words(self) -> list[str]:
        return [
            *(line for arena in self.arenas for line in arena.layout.lines()),
            f"optimizer {type(self._training.optim).__name__}",
            *self.averager.words(),
            *(f"along {type(entry).__name__}" for entry in self._training.along),
        ]

    @outside_modes()
    def state_for_new(self) -> dict[str, Any]:
        state = {
            "optim": self._training.optim.state_dict(),
            "averager": self.averager.state_for_new(),
            "buffers": [buffers.state_dict() for buffers in self._buffers()],
        }
        given: dict[str, Any] = with_arrays(state)
        return given

    @outside_modes()
    def take_over(self, state: Mapping[str, Any]) -> None:
        self._wrapped.take()
        self._training.optim.load_state_dict(with_tensors(state["optim"]))
        self.averager.take_over(state["averager"])
        for buffers, values in zip(self._buffers(), state["buffers"], strict=True):
            buffers.load_state_dict(with_tensors(values))

    def _buffers(self) -> list[ModuleBuffers]:
        return [entry for entry in self._training.along if isinstance(entry, ModuleBuffers)]


class _Copied:
    """An optimizer's state as copies: torch's state dicts share memory with it."""

    def __init__(self, optim: Optimizer) -> None:
        self._optim = optim

    def state_dict(self) -> dict[str, Any]:
        return deepcopy(self._optim.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._optim.load_state_dict(dict(state_dict))
