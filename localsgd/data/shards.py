"""Who learns from which sample: a pure function of seed, epoch, position and rank.

An epoch is one order of all samples, the same on every rank, dealt out like cards. So the position
of all workers together is one number, and what is left can be dealt to another number of workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localsgd.checks import agreed, checked_count, checked_flag, workers_of
from localsgd.comm import solo
from localsgd.comm.contract import Communicator
from localsgd.data.streams import Seed, checked_seed, require_keys, stream

Indices: TypeAlias = NDArray[np.int64]


class ShardSampler:
    """Deals the samples of every epoch out to the workers, in batches of indices.

        order = a permutation of the samples, from seed and epoch
        group = the next batch_size · size entries of it
        batch = group[rank::size]

    Each sample is dealt exactly once an epoch; with ``remainder="drop"`` the last, incomplete
    group is dealt to nobody. A loop over the sampler is the rest of the current epoch:

    >>> from localsgd import ShardSampler
    >>> sampler = ShardSampler(5, batch_size=2, seed=0, shuffle=False)
    >>> while sampler.epoch < 2:
    ...     print(sampler.epoch, [batch.tolist() for batch in sampler])
    0 [[0, 1], [2, 3], [4]]
    1 [[0, 1], [2, 3], [4]]

    Uneven shards: in the last group of an epoch a worker has up to one sample fewer than others,
    and if that leaves it none, one batch fewer. A worker that holds samples of its own deals them
    to itself: ``ShardSampler(len(mine), batch_size, seed=(7, comm.rank), rank=0, size=1)``.

    A batch counts as taken once it is handed out, so what reads ahead saves a position ahead.
    Every rank holds the order of one epoch: 8 bytes a sample.

    Attributes:
        samples: how many there are.
        batch_size: how many a worker gets at a time.
        rank, size: which shard of how many this is.
        epoch: the number of the current epoch, from 0.
        position: how many of its samples all workers together have been dealt.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: Seed,
        comm: Communicator | None = None,
        rank: int | None = None,
        size: int | None = None,
        shuffle: bool = True,
        remainder: Literal["keep", "drop"] = "keep",
    ) -> None:
        """Collective, unless ``rank`` and ``size`` are given: all arguments must be equal.

        Args:
            samples: how many there are for all workers together.
            batch_size: samples a worker gets at a time, at least 1.
            seed: one or more integers of at least 0.
            comm: the workers; None means ``localsgd.world()``.
            rank, size: a shard of one's own choice, given together and instead of ``comm``.
            shuffle: whether every epoch has an order of its own.
            remainder: what becomes of the last samples of an epoch, if too few for a full batch
                for every worker: "keep" deals them, "drop" leaves them out.

        Raises:
            TypeError, ValueError: for an invalid argument, fewer samples than workers, or, with
                "drop", than one batch for each.
            MismatchError: on every rank, naming the argument that differs or the rank whose
                arguments are invalid; also if the ranks' versions of numpy shuffle differently.
        """
        self._comm = _group(comm, rank, size)

        def prepare() -> ShardSampler:
            self.rank, self.size = _share(self._comm, rank, size)
            self.samples = checked_count("samples", samples, at_least=1)
            self.batch_size = checked_count("batch_size", batch_size, at_least=1)
            self._seed = checked_seed(seed)
            self._shuffle = checked_flag("shuffle", shuffle)
            if remainder not in ("keep", "drop"):
                raise ValueError(f"remainder must be 'keep' or 'drop', got {remainder!r}")
            self._drops = remainder == "drop"
            least = self._group_samples if self._drops else self.size
            if self.samples < least:
                each = f"a batch of {self.batch_size}" if self._drops else "one"
                raise ValueError(
                    f"samples must be at least {each} for each of {self.size} workers, "
                    f"got {self.samples}"
                )
            self.epoch = self.position = 0
            self._ordered: tuple[int, Indices] | None = None
            return self

        agreed(self._comm, "samplers", prepare, ShardSampler._lines)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has for the worker with the most."""
        full, rest = divmod(self.samples, self._group_samples)
        return full + (rest > 0 and not self._drops)

    def __len__(self) -> int:
        """How many batches a whole epoch has for this worker."""
        full, rest = divmod(self.samples, self._group_samples)
        return full + (rest > self.rank and not self._drops)

    def __iter__(self) -> Iterator[Indices]:
        """This worker's batches of the rest of the epoch; then the next epoch is current.

        Leaving the loop early leaves the position where it is, and another loop goes on there.
        """
        while self.position < self.samples:
            group = self._order()[self.position : self.position + self._group_samples]
            if self._drops and len(group) < self._group_samples:
                break
            self.position += len(group)
            batch = group[self.rank :: self.size]
            if len(batch):
                yield batch.copy()
        self.epoch, self.position = self.epoch + 1, 0

    def regroup(self) -> None:
        """Deals what is left to those that are in the group now; not collective."""
        self.rank, self.size = self._comm.rank, self._comm.size

    def take_over(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where the sampler of another rank stands, as one that is new; not collective.

        Raises:
            TypeError, ValueError: as ``load_state_dict``.
        """
        self.epoch, self.position, order = self._checked_state(state_dict)
        self._ordered = (self.epoch, order)

    def state_dict(self) -> dict[str, Any]:
        """Seed, epoch and position, as JSON values; the same on all ranks that took equal steps."""
        return {
            "samples": self.samples,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "epoch": self.epoch,
            "position": self.position,
            "order": zlib.crc32(self._order().data),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where the saved sampler stood. Collective, as the constructor.

        With the same batch size and number of workers the batches are those of a run that never
        stopped. With others the samples that were left are dealt anew, each still once; if the
        product of the two is the same, so are the groups that the workers share in every step.

        Raises:
            TypeError, ValueError: if it does not fit, was saved with other samples or another
                seed, or comes from a version of numpy that shuffles differently. Nothing has
                changed then.
            MismatchError: on every rank, if positions differ or those of a rank do not fit.
        """

        def prepare() -> tuple[int, int, Indices]:
            return self._checked_state(state_dict)

        epoch, position, order = agreed(
            self._comm, "positions", prepare, lambda read: [f"epoch {read[0]}, sample {read[1]}"]
        )
        self.epoch, self.position, self._ordered = epoch, position, (epoch, order)

    def __repr__(self) -> str:
        return (
            f"ShardSampler({self.samples} samples in batches of {self.batch_size}, shard "
            f"{self.rank} of {self.size}, epoch {self.epoch} from sample {self.position})"
        )

    @property
    def _group_samples(self) -> int:
        return self.batch_size * self.size

    def _order(self) -> Indices:
        if self._ordered is None or self._ordered[0] != self.epoch:
            self._ordered = (self.epoch, self._order_of(self.epoch))
        return self._ordered[1]

    def _order_of(self, epoch: int) -> Indices:
        if not self._shuffle:
            return np.arange(self.samples, dtype=np.int64)
        return stream(self._seed, "order", epoch).permutation(self.samples)

    def _lines(self) -> list[str]:
        return [
            f"samples={self.samples}",
            f"batch_size={self.batch_size}",
            f"seed={self._seed}",
            f"shuffle={self._shuffle}",
            f"remainder={'drop' if self._drops else 'keep'!r}",
            f"order of epoch 0 with checksum {zlib.crc32(self._order().data):08x}",
        ]

    def _checked_state(self, state: Mapping[str, Any]) -> tuple[int, int, Indices]:
        own_values = {"samples": self.samples, "seed": self._seed, "shuffle": self._shuffle}
        require_keys(state, "a sampler", (*own_values, "epoch", "position", "order"))
        for name, own in own_values.items():
            if state[name] != own:
                raise ValueError(f"{name} must be {own} as in this sampler, got {state[name]}")
        epoch = checked_count("epoch", state["epoch"], at_least=0)
        position = checked_count("position", state["position"], at_least=0)
        if position > self.samples:
            raise ValueError(f"position must be at most {self.samples} samples, got {position}")
        order = self._order_of(epoch)
        if zlib.crc32(order.data) != state["order"]:
            raise ValueError(
                f"the order of epoch {epoch} must be the one it was saved with: numpy "
                f"{np.__version__} shuffles differently"
            )
        return epoch, position, order


def _group(comm: Communicator | None, rank: object, size: object) -> Communicator:
    if rank is None and size is None:
        return workers_of(comm)
    return solo() if comm is None else workers_of(comm)


def _share(comm: Communicator, rank: object, size: object) -> tuple[int, int]:
    if rank is None and size is None:
        return comm.rank, comm.size
    if comm.size != 1 or rank is None or size is None:
        raise ValueError(
            f"rank and size must be given together and instead of comm, got rank={rank}, "
            f"size={size} and {comm!r}"
        )
    size = checked_count("size", size, at_least=1)
    rank = checked_count("rank", rank, at_least=0)
    if rank >= size:
        raise ValueError(f"rank must be below size, got rank {rank} of {size}")
    return rank, size
