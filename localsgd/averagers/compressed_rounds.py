"""Which rounds of an averager are compressed, and what is kept for them.

Rounds of all workers between hosts are; those of smaller groups, and those in which workers still
train synchronously, are exact. On one host there is nothing to compress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localsgd.averagers.anchor import Flat
from localsgd.averagers.compression import Compression, resized
from localsgd.checks import agreed_among, checked_flag, digest_of
from localsgd.comm import NON_MEMBER, Codec
from localsgd.comm.changes import Change
from localsgd.comm.codecs import check
from localsgd.comm.contract import Communicator
from localsgd.resizing import SavedStates

# The state of rounds that were exact where they were saved, and are no longer.
ANEW = "anew"


class CompressedRounds:
    """The compression of one averager; without a codec there is none.

    Attributes:
        wanted: whether there is a codec.
        words: what must be alike on all ranks.
    """

    def __init__(
        self, codec: Codec | None, comm: Communicator, *, error_feedback: bool, together: int
    ) -> None:
        """Collective: ranks must give the same codec.

        Args:
            together: the number of steps at first in which rounds are exact.

        Raises:
            TypeError: for anything but a codec.
            MismatchError: on every rank, if they differ.
        """

        def prepare() -> list[str]:
            if codec is not None and not isinstance(codec, Codec):
                raise TypeError(f"compress must be a codec of localsgd.codecs, got {codec!r}")
            if checked_flag("error_feedback", error_feedback) and getattr(codec, "unbiased", False):
                raise ValueError(
                    "an unbiased codec must go with error_feedback=False, or what it loses grows, "
                    f"got {codec.name if codec else codec}"
                )
            return [str(codec and codec.name), str(error_feedback)]

        agreed_among(comm, "codecs", prepare, lambda words: words)
        self.words = f"{codec.name}, error feedback {error_feedback}" if codec else "none"
        self.wanted = codec is not None
        self._wanted, self._codec = codec, codec if _acts(comm) else None
        self._comm, self._feeds_back, self._together = comm, error_feedback, together
        self._has_begun = False
        self._kept: list[Compression] | None = None
        # What there was before a regrouping that is not settled.
        self._before: list[Compression] | None = None
        self._loaded: Any = None

    @property
    def begun(self) -> bool:
        """Whether there is something to compress against, if that is needed."""
        return self._codec is None or self._kept is not None

    def begin(self, buffers: Sequence[Flat], *, resumes: bool = False) -> None:
        """Takes the buffers' values for what was agreed on last, or what was loaded. Collective.

        Args:
            resumes: whether a state is about to be loaded, so that values may differ.

        Raises:
            TypeError, ValueError, MismatchError: if the codec cannot carry a buffer, or ranks do
                not begin from the same values.
        """
        codec, self._has_begun = self._codec, True
        if codec is None:
            return

        def prepare() -> list[str]:
            for buffer in buffers:
                check(codec, buffer.dtype, buffer.flat.size)
            if resumes or self._loaded is not None:
                return []
            return [f"parameters with digest {digest_of(buffer.flat)[:16]}" for buffer in buffers]

        agreed_among(self._comm, "what compressed rounds begin from", prepare, lambda lines: lines)
        self._kept = [
            Compression(codec, buffer, self._comm, error_feedback=self._feeds_back)
            for buffer in buffers
        ]
        if resumes or self._loaded == ANEW:
            for kept, buffer in zip(self._kept, buffers, strict=True):
                kept.follow_mean(buffer, self._comm)
        if self._loaded not in (None, ANEW):
            self._take_over(self._loaded)
        self._loaded = None

    def regroup(self, buffers: Sequence[Flat], change: Change) -> None:
        """Shares what is kept among those that are in the group now. Collective.

        Where they are on one host rounds are exact from then on; where they were, compressed ones
        begin from the mean. Called again before ``settle_regrouping``, it goes from what was kept
        before.
        """
        self._codec = self._wanted if _acts(self._comm) else None
        self._before = self._before or self._kept
        self._kept = None
        if self._codec is None or not self._has_begun:
            return
        kept_before = any(self._comm.collect(self._before is not None))
        before: Sequence[Compression | None] = self._before or [None] * len(buffers)
        self._kept = []
        for old, buffer in zip(before, buffers, strict=True):
            kept = Compression(self._codec, buffer, self._comm, error_feedback=self._feeds_back)
            if kept_before:
                kept.take_over(old, buffer, self._comm, change)
            else:
                kept.follow_mean(buffer, self._comm)
            self._kept.append(kept)

    def settle_regrouping(self) -> None:
        """Goes on with what is kept."""
        self._before = None

    def codecs(
        self, buffers: Sequence[Flat], group: Communicator, step: int
    ) -> Sequence[Compression | None]:
        """What goes to ``allreduce`` for every buffer in a round of this group.

        Raises:
            ValueError: if training has not begun.
        """
        if self._codec is None or group is not self._comm or step <= self._together:
            return [None] * len(buffers)
        if self._kept is None:
            raise ValueError("begin(params) must be called before the first local step, got none")
        return self._kept

    def settle(self, buffers: Sequence[Flat], group: Communicator, step: int) -> None:
        """Takes note of a round that was held."""
        if self._kept is not None and group is self._comm:
            for kept, buffer in zip(self._kept, buffers, strict=True):
                if step <= self._together:
                    kept.follow(buffer.flat)
                else:
                    kept.rounds += 1

    def state_dict(self) -> dict[str, Any]:
        """This rank's arrays under "compression"; nothing where nothing is compressed."""
        if self._codec is None:
            return {}
        if self._kept is None:
            return {"compression": self._loaded}
        return {"compression": [kept.state_dict() for kept in self._kept]}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """What ``state_dict`` gives, of a group of another size or layout. Collective.

        What was saved on one host, where nothing is compressed, begins anew; and on one host what
        was not sent is lost.
        """
        if self._codec is None:
            return {}
        if "compression" not in saved.own:
            return {"compression": ANEW}
        kept = saved.own["compression"]
        if kept in (None, ANEW):
            return {"compression": kept}
        places = range(len(kept))
        return {"compression": [resized(saved.at("compression", index)) for index in places]}

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises what ``load_state_dict`` would, and changes nothing."""
        if self._codec is None:
            return
        if "compression" not in state_dict:
            raise ValueError(
                "the state of an averager with a codec must have 'compression', got "
                f"{list(state_dict)}"
            )
        if self._kept is not None and state_dict["compression"] not in (None, ANEW):
            for kept, state in zip(self._kept, state_dict["compression"], strict=True):
                kept.check_state_dict(state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict`` that was checked."""
        if self._codec is None:
            return
        saved = state_dict["compression"]
        if saved is None or self._kept is None:
            self._kept, self._loaded = None, saved
        elif saved != ANEW:
            self._take_over(saved)

    def _take_over(self, saved: Sequence[Any]) -> None:
        assert self._kept is not None
        for kept, state in zip(self._kept, saved, strict=True):
            kept.load_state_dict(state)


def _acts(comm: Communicator) -> bool:
    """Whether there is something to compress: what hosts send to each other."""
    return comm is not NON_MEMBER and len(comm.topology.hosts) > 1
