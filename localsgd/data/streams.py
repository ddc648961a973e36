"""Which random numbers a worker draws: streams that do not overlap, all from one seed.

A stream is named by what it is for and by its rank or epoch, so it does not depend on how many
ranks there are, nor on what else has been drawn.

Source: numpy's SeedSequence and its spawn keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from numpy.random import PCG64, Generator, SeedSequence

from localsgd.checks import agreed, checked_count, workers_of
from localsgd.comm.contract import Communicator
from localsgd.resizing import SavedStates

Seed: TypeAlias = "int | Sequence[int]"
Purpose: TypeAlias = Literal["order", "shared", "own"]

# The first word of a spawn key, so that no two purposes share a stream.
_WORDS: Mapping[Purpose, int] = {"order": 0, "shared": 1, "own": 2}


class RandomStreams:
    """Random generators for every worker, all from one seed.

    Attributes:
        shared: draws the same numbers on every rank, as long as all draw alike.
        own: draws numbers of its own on every rank; those of a rank do not depend on how many
            ranks there are.
    """

    def __init__(self, seed: Seed, comm: Communicator | None = None) -> None:
        """Collective: the seed must be equal on all ranks.

        Args:
            seed: one or more integers of at least 0.
            comm: the workers; None means ``localsgd.world()``.

        Raises:
            TypeError, ValueError: for an invalid seed.
            MismatchError: on every rank, if seeds differ or that of another rank is invalid.
        """
        self._comm = workers_of(comm)
        words = agreed(self._comm, "seeds", lambda: checked_seed(seed), lambda w: [f"seed {w}"])
        self.shared = stream(words, "shared")
        self.own = stream(words, "own", self._comm.rank)

    def state_dict(self) -> dict[str, Any]:
        """Where both generators stand and the rank, as JSON values; every rank saves its own."""
        return {
            "rank": self._comm.rank,
            "shared": dict(self.shared.bit_generator.state),
            "own": dict(self.own.bit_generator.state),
        }

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """This rank's own stream, which begins on ranks that are new; the shared one as it was."""
        own = dict(saved.own)
        if self._comm.rank >= saved.before.size:
            del own["own"]
        return own

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where this rank's generators stood. Collective.

        On more ranks than saved, a new rank loads any rank's ``"shared"`` without ``"own"``: its
        own stream then stays where it is. Generators that were taken out before stay valid.

        Raises:
            TypeError, ValueError: if it does not fit, or is of another rank, which would then
                draw the same numbers as this one. Nothing has changed then.
            MismatchError: on every rank, if the shared streams stand at different places, or
                the state of another rank does not fit.
        """

        def prepare() -> list[tuple[Generator, PCG64]]:
            require_keys(state_dict, "random streams", ("shared",))
            taken = [(self.shared, _read_stream("shared", state_dict["shared"]))]
            if "own" in state_dict:
                if state_dict.get("rank") != self._comm.rank:
                    raise ValueError(
                        f"rank must be {self._comm.rank} as here, got {state_dict.get('rank')}"
                    )
                taken.append((self.own, _read_stream("own", state_dict["own"])))
            return taken

        for generator, read in agreed(
            self._comm, "random streams", prepare, lambda taken: [f"shared {taken[0][1].state}"]
        ):
            generator.bit_generator.state = read.state


def checked_seed(seed: object) -> list[int]:
    """The integers of a seed that a user gave.

    Raises:
        TypeError, ValueError: unless it is an integer of at least 0 or a list or tuple of such.
    """
    entries = seed if isinstance(seed, list | tuple) else [seed]
    if not entries:
        raise ValueError("seed must be one or more integers, got none")
    return [checked_count("seed", entry, at_least=0) for entry in entries]


def stream(seed: Sequence[int], purpose: Purpose, number: int = 0) -> Generator:
    """The generator for a purpose and a rank or an epoch, at its start."""
    # SeedSequence takes 3 and (3, 0) for one seed; the number of integers tells them apart.
    return Generator(PCG64(SeedSequence([len(seed), *seed], spawn_key=(_WORDS[purpose], number))))


def require_keys(state: object, what: str, keys: Sequence[str]) -> None:
    """Raises ValueError unless a state dict that a user loads has these keys."""
    for key in keys:
        if not isinstance(state, Mapping) or key not in state:
            raise ValueError(f"the state dict of {what} must have {key!r}, got {state!r}")


def _read_stream(name: str, state: Any) -> PCG64:
    read = PCG64()
    try:
        read.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name} must be the state of a PCG64 generator, got {error}") from None
    return read
