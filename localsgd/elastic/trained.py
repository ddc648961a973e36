"""What a round may change of a training, and copies of it, to be put back if the round fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from localsgd.arrays import Arena
from localsgd.averagers import ModelAverager
from localsgd.comm.contract import Array
from localsgd.training import Holder, PostLocalSGDOptimizer, Stateful


class Trained(Protocol):
    """A training whose rounds may be held again."""

    @property
    def averager(self) -> ModelAverager:
        """What holds them."""

    @property
    def arenas(self) -> Sequence[Arena]:
        """The parameters."""

    def arrays(self) -> Sequence[Array]:
        """What a round changes in place, the parameters among them; alike at every call."""

    def states(self) -> Mapping[str, Stateful]:
        """What else it may change, by name."""

    def be_held_by(self, holder: Holder) -> None:
        """Holds rounds and averages of gradients by it from now on."""

    def regroup(self) -> None:
        """Makes groups anew when the group of all is another. Collective."""

    def check_growing(self) -> None:
        """Raises ValueError if workers cannot join."""

    def begin(self) -> None:
        """Lets the averager know the parameters as they are. Collective."""

    def words(self) -> list[str]:
        """What must be equal on a worker that joins."""

    def state_for_new(self) -> dict[str, Any]:
        """What a worker that is new takes over from this one, beside ``arrays``."""

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Takes over the ``state_for_new`` of another worker; not collective."""


class TrainedArenas:
    """A ``PostLocalSGDOptimizer`` over arenas."""

    def __init__(self, training: PostLocalSGDOptimizer) -> None:
        """
        Raises:
            TypeError: if its averager is none of ``localsgd.averagers``.
        """
        if not isinstance(training.averager, ModelAverager):
            raise TypeError(
                f"training must have an averager of localsgd.averagers, got {training.averager!r}"
            )
        self._training, self.averager = training, training.averager

    @property
    def arenas(self) -> Sequence[Arena]:
        return self._training.optim.arenas

    def arrays(self) -> Sequence[Array]:
        found = [arena.flat for arena in self.arenas]
        if self._training.gradients is None:
            return found
        return [*found, *(arena.grad.flat for arena in self.arenas)]

    def states(self) -> Mapping[str, Stateful]:
        training, found = self._training, dict[str, Stateful]()
        if training.buffers is not None:
            found["buffers"] = training.buffers
        if any(entry is not training.buffers for entry in training.along):
            found["optim"] = training.optim
        return found

    def be_held_by(self, holder: Holder) -> None:
        self._training.survival = holder

    def regroup(self) -> None:
        if self._training.gradients is not None:
            self._training.gradients.regroup()

    def check_growing(self) -> None:
        pass

    def begin(self) -> None:
        self.averager.begin(self.arenas)

    def words(self) -> list[str]:
        training = self._training
        layouts = [line for arena in self.arenas for line in arena.layout.lines()]
        return [
            *layouts,
            f"optimizer {type(training.optim).__name__}",
            *self.averager.words(),
            f"gradients {training.gradients!r}",
        ]

    def state_for_new(self) -> dict[str, Any]:
        buffers = self._training.buffers
        return {
            "optim": self._training.optim.state_dict(),
            "averager": self.averager.state_for_new(),
            "buffers": None if buffers is None else buffers.state_dict(),
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        self._training.optim.load_state_dict(state["optim"])
        self.averager.take_over(state["averager"])
        if self._training.buffers is not None:
            self._training.buffers.load_state_dict(state["buffers"])


class Copies:
    """Copies of what a round may change."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._arrays: list[Array] = []
        self._states: dict[str, Any] = {}
        self._of_averager: dict[str, Any] = {}

    def take(self) -> None:
        """Copies everything as it is; to the memory of the last copies, if they are alike."""
        arrays = self._trained.arrays()
        if [copy.size for copy in self._arrays] != [array.size for array in arrays]:
            self._arrays = [array.copy() for array in arrays]
        for copy, array in zip(self._arrays, arrays, strict=True):
            copy[...] = array
        averager = self._trained.averager
        self._of_averager = averager.snapshot() if averager.begun else {}
        self._states = {name: part.state_dict() for name, part in self._trained.states().items()}

    def put_back(self) -> None:
        """Makes everything what it was."""
        for copy, array in zip(self._arrays, self._trained.arrays(), strict=True):
            array[...] = copy
        if self._of_averager:
            self._trained.averager.put_back(self._of_averager)
        for name, part in self._trained.states().items():
            part.load_state_dict(self._states[name])
