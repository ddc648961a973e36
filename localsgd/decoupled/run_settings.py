"""What a decoupled run is: numbers that all its workers have alike."""

from __future__ import annotations

from dataclasses import dataclass

from localsgd.checks import checked_count, checked_flag, checked_number
from localsgd.decoupled.merge import Merging
from localsgd.decoupled.quorum import Quorum
from localsgd.schedules import Streaming

_STALE_PERIODS = 10


@dataclass(frozen=True)
class Settings:
    """The arguments of ``DecoupledAverager``, which says what they mean."""

    streaming: Streaming
    quorum: Quorum
    merging: Merging
    mixing: float | None
    staleness: int | None
    on_time: bool

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: for an argument out of its range.
        """
        for name, kind in (("quorum", Quorum), ("merging", Merging)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")
        if self.mixing is not None and checked_number("mixing", self.mixing) > 1:
            raise ValueError(f"mixing must be at most 1, got {self.mixing}")
        if self.staleness is not None:
            checked_count("staleness", self.staleness, at_least=1)
        checked_flag("on_time", self.on_time)

    def check_for(self, size: int, hosts: int) -> None:
        """
        Raises:
            ValueError: if so many workers, on so many hosts, cannot do it.
        """
        needed = self.quorum.of(size)
        if hosts > 1:
            raise ValueError(
                f"decoupled workers must share a host, got {hosts} hosts: merges between hosts "
                "are not there yet"
            )
        if self.on_time and needed < size:
            raise ValueError(
                f"on_time must have a quorum of all {size} workers, got {needed}: Quorum({size})"
            )

    @property
    def at_once(self) -> bool:
        """Whether workers wait for a merge in the step in which they offer their copies."""
        return self.on_time and not self.streaming.delay

    @property
    def stale_after(self) -> int:
        """After how many steps without a merge of a fragment a worker warns."""
        periods = _STALE_PERIODS * self.streaming.period
        return periods if self.staleness is None else self.staleness
