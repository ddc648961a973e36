"""When an averager's rounds are outer steps, and from where they go.

Rounds of all workers are; those of smaller groups, and those in which workers still train
synchronously, take the mean as it is. The anchor is what training began with, until the synchronous
phase ends: then it is the mean after that phase's last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localsgd.arrays import Arena
from localsgd.averagers.agreeing import agreed_outer
from localsgd.averagers.anchor import Anchor, resharded
from localsgd.averagers.regrouping import regrouped
from localsgd.comm.changes import Change
from localsgd.comm.contract import Communicator, Update
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates


class OuterSteps:
    """The outer steps of one averager; without an outer optimizer there are none."""

    def __init__(self, outer: OuterOptimizer | None, schedule: object, comm: Communicator) -> None:
        """Collective: ranks must give the same outer optimizer.

        Raises:
            TypeError: for anything but an outer optimizer.
            MismatchError: on every rank, if they differ.
        """
        self.outer = agreed_outer(comm, outer)
        self._comm = comm
        self._together = max(
            int(getattr(schedule, name, 0)) for name in ("synchronous_steps", "warmup_steps")
        )
        self._anchor: Anchor | None = None
        # That of the group as it was, until a regrouping is settled.
        self._before: Anchor | None = None
        self._loaded: Mapping[str, Any] | None = None

    @property
    def begun(self) -> bool:
        """Whether there is an anchor, if one is needed."""
        return self.outer is None or self._anchor is not None

    def begin(self, arenas: Sequence[Arena]) -> None:
        """Takes the parameters for the anchor, or what was loaded. Collective."""
        if self.outer is not None:
            self._anchor = Anchor(self.outer, arenas, self._comm)
            if self._loaded is not None:
                self._anchor.load_state_dict(self._loaded)
                self._loaded = None

    @property
    def anchor(self) -> Anchor | None:
        """What the workers agreed on last; None before training has begun."""
        return self._anchor

    @property
    def together(self) -> int:
        """The number of steps at first in which rounds take the mean."""
        return self._together

    def updates(
        self, arenas: Sequence[Arena], group: Communicator, step: int
    ) -> tuple[list[Update | None], str]:
        """The update of every arena in a round of this group, and what ranks must have alike.

        Raises:
            ValueError: if training has not begun, or began with other parameters.
        """
        if self.outer is None or group is not self._comm:
            return [None] * len(arenas), ""
        if self._anchor is None:
            raise ValueError("begin(params) must be called before the first local step, got none")
        if not self._anchor.fits(arenas):
            raise ValueError(
                "params must be those that training began with, got others: call begin(params) "
                "where training goes on from them"
            )
        indices = range(len(arenas))
        if step <= self._together:
            return [self._anchor.follow(index) for index in indices], ""
        words = self.outer.begin_round()
        return [self._anchor.step(index) for index in indices], words

    def settle(self, group: Communicator, step: int) -> None:
        """Takes note of a round that was held."""
        if self._anchor is not None and group is self._comm and step > self._together:
            self._anchor.rounds += 1

    def regroup(self, arenas: Sequence[Arena], change: Change, begun: int) -> None:
        """Brings the shards to those that are in the group now (``regrouping``). Collective.

        Called again before ``settle_regrouping``, it goes from the shards as they were.
        """
        is_new = self._comm.rank >= len(change.numbers)
        if self.outer is not None and (self._anchor is not None or is_new):
            self._before = self._before or self._anchor
            made = Anchor(self.outer, arenas, self._comm)
            before = None if is_new else self._before
            regrouped(before, made, arenas, self._comm, change, begun)
            self._anchor = made

    def settle_regrouping(self) -> None:
        """Goes on with the shards as they are."""
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        """This rank's shards under "outer"; nothing without an outer optimizer."""
        if self.outer is None:
            return {}
        return {"outer": self._loaded if self._anchor is None else self._anchor.state_dict()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """What ``state_dict`` gives, of a group of another size or layout. Collective."""
        if self.outer is None or saved.own.get("outer") is None:
            return {}
        return {"outer": resharded(saved.at("outer"))}

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises what ``load_state_dict`` would, and changes nothing."""
        if self.outer is None:
            return
        if "outer" not in state_dict:
            raise ValueError(
                "the state of an averager with an outer optimizer must have 'outer', got "
                f"{list(state_dict)}"
            )
        if self._anchor is not None and state_dict["outer"] is not None:
            self._anchor.check_state_dict(state_dict["outer"])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict`` that was checked; an anchor that is not there yet gets it."""
        if self.outer is None:
            return
        saved = state_dict["outer"]
        if saved is None or self._anchor is None:
            self._anchor, self._loaded = None, saved
        else:
            self._anchor.load_state_dict(saved)
