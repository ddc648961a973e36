"""Who takes part, and how their bytes move: the contract that every group of workers meets.

One implementation (``group.Group``) stands on any ``Transport``; a backend supplies only
sending, receiving and splitting. Every method of a communicator is collective and buffers
are one-dimensional, contiguous and change in place, unless the method says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .changes import Change
from .codecs import Codec, PlacedCodec
from .in_words import seconds_in_words, size_in_words
from .topology import Topology

Array: TypeAlias = NDArray[Any]
Op: TypeAlias = Literal["mean", "sum", "max", "min"]
Reduction: TypeAlias = Literal["exact", "native"]
Json: TypeAlias = Any
Update: TypeAlias = Callable[[slice, Array], None]


@dataclass(frozen=True)
class ScalarRule:
    """An update as arithmetic on single numbers, for a compiled loop that does the mean, too.

    It gives the bits that the update gives; a pass takes the one or the other. An update that has
    a rule has it as its attribute ``rule``.

    Attributes:
        step: ``step(mean, *kept, *numbers)`` is the tuple of what the kept numbers become, of
            which the first is the result, too. A plain function of arithmetic that numba compiles.
        kept: arrays of the caller's, each of the length of this rank's shard and of the buffer's
            dtype.
        numbers: what else ``step`` gets, as numbers of that dtype.
    """

    step: Callable[..., tuple[Any, ...]]
    kept: Sequence[Array]
    numbers: Sequence[float] = ()


@dataclass(frozen=True)
class Traffic:
    """What one rank has moved so far, counted where it moves.

    The byte counts are payload: parameters, gradients and arrays. The headers that every
    collective compares between hosts are counted apart, in ``control``.

    ``print(comm.traffic)`` shows it in units.
    """

    calls: int = 0
    host_read: int = 0
    host_written: int = 0
    sent: int = 0
    received: int = 0
    control: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0

    def __str__(self) -> str:
        """
        >>> print(Traffic(3, 0, 0, 2_500_000, 2_500_000, 96, 0.5, 0.125))
        3 calls took 500 ms, of which 125 ms were waits for others
        within the host: 0 read, 0 written
        between hosts: 2.5 MB sent, 2.5 MB received, and headers of 96 B
        """
        took, waited = seconds_in_words(self.seconds), seconds_in_words(self.waited_s)
        plural = "" if self.calls == 1 else "s"
        read, written = size_in_words(self.host_read), size_in_words(self.host_written)
        sent, received = size_in_words(self.sent), size_in_words(self.received)
        return (
            f"{self.calls:,} call{plural} took {took}, of which {waited} were waits for others\n"
            f"within the host: {read} read, {written} written\n"
            f"between hosts: {sent} sent, {received} received, and headers of "
            f"{size_in_words(self.control)}"
        )

    def __add__(self, other: Traffic) -> Traffic:
        return self._combine(other, 1)

    def __sub__(self, other: Traffic) -> Traffic:
        return self._combine(other, -1)

    def _combine(self, other: Traffic, sign: int) -> Traffic:
        return replace(
            self, **{name: mine + sign * getattr(other, name) for name, mine in vars(self).items()}
        )


class Request(Protocol):
    """Work that runs in the background."""

    def done(self) -> bool:
        """Whether the work has ended, well or not."""

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns once the work has ended.

        Raises:
            TimeoutError: if it has not after ``timeout_s`` seconds; it goes on.
            Exception: whatever the work raised.
        """


class Pending(Protocol):
    """One message under way."""

    def done(self) -> bool:
        """Whether the message's memory may be used again; makes progress."""


# How long a record is that a rank announces.
RECORD_BYTES = 1024


class Arrival(Pending, Protocol):
    """A message under way whose length is not known.

    Attributes:
        nbytes: of what has come, once it is here.
    """

    nbytes: int


class Transport(Protocol):
    """What a backend supplies: messages between ranks, in order for each pair and tag."""

    rank: int
    size: int

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        """Starts sending ``data`` (bytes, shape ``(n,)`` of uint8)."""

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        """Starts receiving exactly ``into.nbytes`` bytes; any other number is a MismatchError."""

    def receive_up_to(self, into: Array, source: int, tag: int) -> Arrival:
        """Starts receiving at most ``into.nbytes`` bytes, to the beginning of ``into``."""

    def split(self, colors: Sequence[int | None]) -> Transport | None:
        """The ranks with this rank's colour as a transport of their own; None for colour None.

        Collective. ``colors`` are those of all ranks.
        """

    def announce(self, record: bytes, dest: int) -> None:
        """Sends ``RECORD_BYTES`` bytes that nobody expects; returns at once, never raises."""

    def news(self) -> Sequence[bytes]:
        """The records announced to this rank that have come since the last call."""

    def check(self, missing: Sequence[int]) -> None:
        """Raises RankFailure if one of the ranks that are waited for can never come."""

    def close(self) -> None:
        """Gives back what the transport holds; it is not used afterwards."""


class Communicator(Protocol):
    """A group of workers.

    ``op`` is ``"mean"``, ``"sum"``, ``"max"`` or ``"min"``. The mean is the shifted mean at two
    levels (``reduction/arithmetic.py``): identical finite replicas keep their bits, every rank ends
    with the same bits, and one topology gives the same bits on every backend. Dividing by the size
    of the group is the communicator's business and nobody else's.

    Ranks that call different verbs, or one verb with different lengths, dtypes, operations or
    regions, get a ``MismatchError`` on every rank before anything has changed. A rank whose
    own arguments are wrong raises its own error, and the others a ``MismatchError`` naming it.

    A rank that fails within a call, as in an update, or gives up waiting takes part no more: its
    later calls are a ``RankFailure``, and so are those of all ranks of the group, on any host, as
    soon as they wait for others.
    """

    @property
    def rank(self) -> int:
        """This worker's number in the group, from 0."""

    @property
    def size(self) -> int:
        """How many workers the group has."""

    @property
    def topology(self) -> Topology:
        """Which ranks share a host."""

    @property
    def begun(self) -> int:
        """How many collectives this rank has begun since the group was made, or shrunk."""

    @property
    def traffic(self) -> Traffic:
        """What this rank has moved through this group so far; not collective."""

    @property
    def progress(self) -> memoryview:
        """One integer, of the local steps that this rank has taken, for whoever counts them.

        Others read it when they wait for this rank. To be stored in place; not collective.
        """

    def allocate(self, count: int, dtype: DTypeLike) -> Array:
        """A zeroed buffer, shape ``(count,)``, that the ranks of a host map from each other.

        Collectives on it cost one pass over memory; so do those of a group split from this one.
        Where the ranks cannot map it (too many open files, say) it is private memory on all ranks,
        which rank 0 says once: collectives then copy it.

        Raises:
            MemoryError: on every rank, if the memory of one host does not suffice.
        """

    def neighbours(self, buffer: Array) -> Mapping[int, Array]:
        """For every rank of this host its memory at the place of ``buffer``, to be read at once.

        Not collective, and nobody waits: what is seen may be half written.

        Args:
            buffer: lies in memory of ``allocate``.

        Raises:
            ValueError: for other memory, and where ranks could not share it.
        """

    def until(self, done: Callable[[], bool], missing: Callable[[], Sequence[int]]) -> None:
        """Returns once ``done()``, which others bring about; not collective.

        Args:
            missing: the ranks that keep it from being so, for what is said of a long wait.

        Raises:
            RankFailure: if one of them can never come, or the group's deadline has passed.
        """

    def shard(self, count: int) -> slice:
        """The part of a buffer of ``count`` elements that this rank owns; not collective.

        Hosts get equal parts and the ranks of a host equal parts of theirs.
        """

    def held(self, count: int) -> Sequence[slice]:
        """The parts of a buffer of that length that this rank combines for its host, rising.

        Its shard is one of them; those of a host's ranks are all of the buffer. Not collective.
        """

    def allreduce(
        self,
        buffer: Array,
        op: Op,
        *,
        weight: float | None = None,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
        mix: float = 0.0,
        finite: bool = False,
        label: str = "",
    ) -> None:
        """Reduces, updates and writes back in one pass over memory.

        Args:
            buffer: shape ``(n,)``, this rank's contribution; changed in place.
            op: how elements combine.
            weight: this rank's weight in the mean, finite and at least 0; a rank of weight 0 is
                not read. None on every rank weighs equally.
            codec: how values travel between hosts; None sends them as they are.
            update: ``update(part, reduced)`` sees every element of this rank's shard once, in
                cache-sized blocks, between reduction and write-back, and changes ``reduced``
                (shape ``(part.stop - part.start,)``, the buffer's dtype) in place.
            mix: each rank ends with ``mix * own + (1 - mix) * result``, in [0, 1]; 0 for integers.
            finite: whether it is an error if a number of the mean, or of what ``update`` makes of
                it, is not finite. There each rank keeps its own, and ``update`` does not see such
                a number of the mean; everywhere else the bits are the same. Not with a codec,
                which spreads such a number over others.
            label: what this call is for, as in "round after step 6"; compared like the rest.

        Raises:
            MismatchError, RankFailure, ValueError, TypeError: as every collective.
            NoWeight: a ValueError, on every rank, if the weights sum to 0.
            NotFiniteError: a ValueError, on every rank, at the end, as ``finite`` says.
        """

    def reduce_scatter(
        self,
        buffer: Array,
        op: Op,
        *,
        weight: float | None = None,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
    ) -> None:
        """As ``allreduce``, but only this rank's ``buffer[shard]`` ends with the result.

        The rest of the buffer is unspecified, and may be written at once.
        """

    def allgather(self, buffer: Array, *, codec: Codec | PlacedCodec | None = None) -> None:
        """Every rank's ``buffer[shard]`` reaches every rank."""

    def broadcast(self, buffer: Array, root: int) -> None:
        """Every rank ends with the buffer of rank ``root``, to the bit."""

    def sendrecv(self, send: Array, receive: Array, dest: int, source: int) -> None:
        """Sends one buffer while receiving another; concerns the ranks named alone.

        Raises:
            MismatchError: if what comes from ``source`` has not as many bytes as ``receive``.
        """

    def exchange(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        """Sends to some ranks while receiving from some; concerns the ranks named alone.

        All are begun before one is waited for, so that no order of ranks can lock.

        Args:
            sends: a buffer for every rank that gets one, other than this.
            receives: where to put what comes from every rank that sends one, other than this.

        Raises:
            MismatchError: if what comes has not as many bytes as the place for it.
        """

    def gather(self, array: Array) -> list[Array]:
        """Every rank's one-dimensional array, of any length and dtype, on every rank."""

    def barrier(self) -> None:
        """Returns once every rank has called it."""

    def collect(self, value: Json) -> list[Json]:
        """Every rank's small JSON value, in rank order, on every rank."""

    def agree(self, value: Json, what: str) -> None:
        """Raises MismatchError on every rank unless all ranks gave the same JSON value.

        Args:
            value: what this rank holds.
            what: its name in the message, as in ``parameters`` or ``hyperparameters``.
        """

    def start(self, work: Callable[[Communicator], None]) -> Request:
        """Runs ``work(comm)`` in the background; returns at once.

        A group runs its operations in the order they were issued: a later call waits for
        earlier ones. Buffers in use must not be touched before ``wait()``.
        """

    def split(self, color: int | None) -> Communicator:
        """The group of the ranks that gave the same colour, in their order here.

        A rank that gives None belongs to none of them and gets ``NON_MEMBER``.
        """

    def shrink(self, *, silent: Sequence[int] = ()) -> Change:
        """Goes on with the ranks that are left, after a RankFailure. Collective among them.

        Each calls it wherever it stands. The group stays the same object: its ranks are numbered
        anew, in their order, and memory stays where it is. Groups split from it are of no use any
        more. Only the group of all workers can, in a job that was started to be fault-tolerant.

        Args:
            silent: ranks that may be alive and do not come: those of this host are killed.

        Returns:
            Who is left. All may be: then the group is as it was, and works again.

        Raises:
            RankFailure: if this job cannot go on without those that are lost.
        """

    @property
    def growable(self) -> bool:
        """Whether workers can be added to this group: that of all, in a job started for it."""

    @property
    def joining(self) -> bool:
        """Whether this is the group of one of a worker that is to ``join`` others."""

    @property
    def summoned(self) -> int:
        """How many workers this rank has started that may join yet; not collective."""

    def summon(self, count: int) -> None:
        """Starts more workers, which run the program from its top; returns at once.

        To be called on rank 0. Not collective.
        """

    def grow(self, reason_against: Callable[[Json], str]) -> Change | None:
        """Takes in one worker that rank 0 has started and that asks to join. Collective.

        The group stays the same object: ranks keep their numbers and the new one comes behind.
        Memory stays where it is, and is shared again by ``map_again``. Groups split from this one
        are of no use any more.

        Args:
            reason_against: says on rank 0 why one that gives this offer cannot join; empty if it
                can. It is told, and the others go on without it.

        Returns:
            What became of the group; None if nobody joins.

        Raises:
            RankFailure: if one is lost meanwhile, perhaps the new one: ``shrink`` then.
        """

    def join(self, offer: Json) -> Change:
        """Becomes a rank of the group that has started this worker, when it next grows.

        Args:
            offer: what the others are to know before.

        Raises:
            MismatchError: if they refuse, with their reason.
            RankFailure: if they are no more, or one is lost meanwhile: ``shrink`` then.
        """

    def map_again(self, buffer: Array) -> None:
        """Shares a whole buffer of ``allocate`` with the ranks that this host has now.

        Collective. Without it buffers from before the group grew are private memory.
        """

    def close(self) -> None:
        """Ends the group on this rank; every later call is a ValueError. Not collective."""


def as_bytes(array: Array) -> NDArray[np.uint8]:
    """The memory of a contiguous array as bytes, shape ``(array.nbytes,)``; shares it."""
    return array.view(np.uint8).reshape(-1)


def address_of(array: NDArray[Any]) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])
