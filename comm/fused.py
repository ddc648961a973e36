"""One reduction in one pass: sum, update and write back, on a host and between hosts.

For every chunk of every atom (``plan.py``) a rank does up to three things:

    offer    sum the host's values of a chunk that it holds for another host, and send the sum
    combine  sum a chunk that it owns, over its host and then the hosts; update; write back; send
    accept   write a chunk that another host owns into all memory of its own host

Between hosts the three run on different chunks at once, so that summing, sending and writing
back overlap. Only a chunk's holder touches it between the host's two barriers, so neighbours'
memory is read and written directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import Scratch, blend
from .base import Array, Op, Pending, Update
from .codecs import Codec
from .messages import MEAN, RESULT, Mail
from .plan import Atom, atoms, chunks_needed
from .topology import Topology

CHUNK = 32_768
_LAG = 2

Where = Callable[[int, int], slice]


@dataclass(frozen=True)
class Job:
    """What one pass is to do.

    Attributes:
        op: how elements combine; None to pass on what the owners hold.
        weights: of every rank of the group.
        spread: whether the result reaches every rank, or stays with its owner.
    """

    op: Op | None
    weights: Sequence[float]
    codec: Codec | None = None
    update: Update | None = None
    mix: float = 0.0
    spread: bool = True


class Scratches:
    """The memory that combining needs, for each level; kept from pass to pass."""

    def __init__(self, dtype: np.dtype[Any], *, large: bool) -> None:
        self.dtype = dtype
        self.of_host = Scratch(CHUNK, dtype, large=large)
        self.of_hosts = Scratch(CHUNK, dtype, large=large)


@dataclass
class _Message:
    """A wire buffer, the pieces under way, and the rank at the other end."""

    data: Array
    pieces: list[Pending]
    peer: int


class Pass:
    """One rank's work for one buffer of ``count`` elements.

    Attributes:
        atoms: the atoms of the buffer.
        chunks: how many chunks each of them is cut into.
        host_read, host_written: bytes of neighbours' memory so far.
    """

    def __init__(
        self, mail: Mail, topology: Topology, rank: int, job: Job, count: int, scratch: Scratches
    ) -> None:
        self.atoms = atoms(count, topology)
        self.chunks = 0
        self.host_read = self.host_written = 0
        self._mail, self._job, self._scratch = mail, job, scratch
        # Nothing comes between combining and writing back.
        plain = job.op is not None and job.update is None and job.codec is None and not job.mix
        self._everywhere = plain and job.spread
        self._home = topology.host_of[rank]
        self._ranks = topology.hosts[self._home]
        self._me = self._ranks.index(rank)
        self._weights = [job.weights[r] for r in self._ranks]
        self._host_weights = [sum(job.weights[r] for r in ranks) for ranks in topology.hosts]
        held = [(i, a) for i, a in enumerate(self.atoms) if a.holders[self._home] == rank]
        self._owned = [(i, atom) for i, atom in held if atom.home == self._home]
        self._lent = [(i, atom) for i, atom in held if atom.home != self._home]
        self._incoming: dict[tuple[int, int, int], _Message] = {}
        self._outgoing: dict[int, list[_Message]] = {}

    def run(self, local: Sequence[Array]) -> None:
        """Works through the whole buffer; ``local`` are the host's copies of it, by rank."""
        one_host = len(self._host_weights) == 1
        # A compiled loop that nothing interrupts takes the whole shard at once.
        whole = one_host and self._everywhere and self._scratch.of_host.compiled
        # Every chunk under way takes a buffer for every other host.
        length = 2 * CHUNK // max(len(self._host_weights), 2)
        self.cut(local[self._me].size if whole and self._job.op == "mean" else length)
        lag = 0 if one_host else _LAG
        for index in range(self.chunks + 2 * lag):
            self.step(local, lambda i, c: self.atoms[i].chunk(c, self.chunks), index, lag)

    def cut(self, length: int) -> None:
        """Cuts the atoms into chunks of at most ``length`` elements."""
        self.chunks = chunks_needed(self.atoms, max(length, 1))

    def step(self, local: Sequence[Array], where: Where, index: int, lag: int) -> None:
        """Offers chunk ``index``, combines the one ``lag`` before and accepts that before it.

        Args:
            local: the memory of the host's ranks.
            where: ``where(atom, chunk)``: its place in that memory.
        """
        if index < self.chunks:
            self._offer(local, where, index)
        if 0 <= index - lag < self.chunks:
            self._combine(local, where, index - lag)
        if 0 <= index - 2 * lag < self.chunks:
            self._accept(local, where, index - 2 * lag)

    def _offer(self, local: Sequence[Array], where: Where, index: int) -> None:
        job = self._job
        if job.op is not None:
            for i, atom in self._owned:
                for host, holder in enumerate(atom.holders):
                    if host != self._home and self._host_weights[host] > 0:
                        self._expect(i, atom, index, host, holder, MEAN)
        if job.spread:
            for i, atom in self._lent:
                self._expect(i, atom, index, atom.home, atom.owner, RESULT)
        if job.op is not None and self._host_weights[self._home] > 0:
            for i, atom in self._lent:
                place = where(i, index)
                values = np.empty(place.stop - place.start, self._scratch.dtype)
                self._sum_host(local, place, [values])
                self._post(self._encoded(values), atom.owner, MEAN, index)

    def _combine(self, local: Sequence[Array], where: Where, index: int) -> None:
        job = self._job
        for i, atom in self._owned:
            place, part = where(i, index), atom.chunk(index, self.chunks)
            if job.op is None:
                result = local[self._me][place]
            else:
                result = self._sum_hosts(local, place, i, atom, index)
            if job.update is not None and part.start < part.stop:
                job.update(part, result)
            others = [r for r in atom.holders if r != atom.owner] if job.spread else []
            if others:
                # A mixed result lies in scratch memory, any other where it stays.
                message = self._encoded(result.copy() if job.mix else result)
                if job.codec is not None:
                    job.codec.decode(message, result)
                for holder in others:
                    self._post(message, holder, RESULT, index)
            if self._everywhere:
                self.host_written += (len(local) - 1) * result.nbytes
            else:
                self._write(local, place, result, is_mine=not job.mix)

    def _accept(self, local: Sequence[Array], where: Where, index: int) -> None:
        if self._job.spread:
            for i, atom in self._lent:
                self._write(local, where(i, index), self._arrived(i, atom, index, atom.home))
        for message in self._outgoing.pop(index, []):
            self._mail.wait(message.pieces, message.peer)

    def _targets(self, local: Sequence[Array], place: slice) -> list[Array]:
        """Where a result of this rank's shard goes at once; to nowhere yet if it is mixed."""
        if self._job.mix:
            return []
        others = [memory for index, memory in enumerate(local) if index != self._me]
        return [
            memory[place] for memory in [local[self._me], *(others if self._everywhere else ())]
        ]

    def _parts(self, local: Sequence[Array], place: slice) -> list[Array]:
        """The values of this host's ranks, which are about to be read."""
        parts = [memory[place] for memory in local]
        used = sum(weight > 0 for i, weight in enumerate(self._weights) if i != self._me)
        self.host_read += used * parts[0].nbytes
        return parts

    def _sum_host(self, local: Sequence[Array], place: slice, outs: Sequence[Array] = ()) -> Array:
        """The values of this host's ranks combined, in ``outs`` or until the next call."""
        assert self._job.op is not None
        parts = self._parts(local, place)
        return self._scratch.of_host.combine(self._job.op, parts, self._weights, outs)

    def _sum_hosts(
        self, local: Sequence[Array], place: slice, i: int, atom: Atom, index: int
    ) -> Array:
        """The values of all hosts combined, in the targets or until the next call."""
        assert self._job.op is not None
        if len(self._host_weights) == 1 and self._everywhere:
            parts = self._parts(local, place)
            self._scratch.of_host.combine_in_place(self._job.op, parts, self._weights)
            return parts[self._me]
        outs = self._targets(local, place)
        if len(self._host_weights) == 1:
            return self._sum_host(local, place, outs)
        means = [
            self._sum_host(local, place)
            if host == self._home
            else self._arrived(i, atom, index, host)
            for host, weight in enumerate(self._host_weights)
            if weight > 0
        ]
        weights = [weight for weight in self._host_weights if weight > 0]
        return self._scratch.of_hosts.combine(self._job.op, means, weights, outs)

    def _write(
        self, local: Sequence[Array], place: slice, result: Array, *, is_mine: bool = False
    ) -> None:
        """Brings a result to this host's ranks; ``is_mine`` if it lies in this rank's memory."""
        for index, memory in enumerate(local if self._job.spread else ()):
            if index == self._me and is_mine:
                continue
            own = memory[place]
            if self._job.mix:
                blend(own, result, self._job.mix, own)
            else:
                own[...] = result
            if index != self._me:
                self.host_written += own.nbytes

    def _encoded(self, values: Array) -> Array:
        """A message with the values."""
        codec = self._job.codec
        if codec is None:
            return values
        message = np.empty(codec.encoded_bytes(values.size), np.uint8)
        codec.encode(values, message)
        return message

    def _post(self, data: Array, dest: int, tag: int, index: int) -> None:
        message = _Message(data, self._mail.send(data, dest, tag), dest)
        self._outgoing.setdefault(index, []).append(message)

    def _expect(self, i: int, atom: Atom, index: int, host: int, source: int, tag: int) -> None:
        part, codec = atom.chunk(index, self.chunks), self._job.codec
        length = part.stop - part.start
        data = (
            np.empty(length, self._scratch.dtype)
            if codec is None
            else np.empty(codec.encoded_bytes(length), np.uint8)
        )
        pieces = self._mail.receive(data, source, tag)
        self._incoming[i, index, host] = _Message(data, pieces, source)

    def _arrived(self, i: int, atom: Atom, index: int, host: int) -> Array:
        """The values that a host has sent for a chunk, once they are here."""
        message = self._incoming.pop((i, index, host))
        self._mail.wait(message.pieces, message.peer)
        if self._job.codec is None:
            return message.data
        part = atom.chunk(index, self.chunks)
        values = np.empty(part.stop - part.start, self._scratch.dtype)
        self._job.codec.decode(message.data, values)
        return values
