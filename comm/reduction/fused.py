"""One reduction in one pass: sum, update and write back, on a host and between hosts.

For every chunk of every atom (``plan.py``) a rank does up to three things:

    offer    sum the host's values of a chunk that it holds for another host, and send the sum
    combine  sum a chunk that it owns, over its host and then the hosts; update; write back; send
    accept   write a chunk that another host owns into all memory of its own host

Between hosts the three run on different chunks at once, so that summing, sending and writing
back overlap. Only a chunk's holder touches it between the host's two barriers, so neighbours'
memory is read and written directly, and sent from and received into where nothing has to be done
to it on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codecs import Codec, PlacedCodec
from ..contract import Array, Op, Update
from ..topology import Topology
from ..waiting import BEHIND, MEAN, RESULT, Mail
from .arithmetic import Scratch, blend
from .finite import finite_runs, write_finite
from .plan import Atom, atoms, chunks_needed
from .wires import Wires

CHUNK = 32_768
_WIRE_BYTES = 256 << 10
# How many chunks are under way at once. A rank that waits behind a computation looks rarely, and
# the link must stay busy meanwhile; otherwise fewer are done sooner.
_LAG, _LAG_BEHIND = 2, 8

Where = Callable[[int, int], slice]


@dataclass(frozen=True)
class Job:
    """What one pass is to do.

    Attributes:
        op: how elements combine; None to pass on what the owners hold.
        weights: of every rank of the group.
        finite: whether each rank keeps its own numbers where the result is not finite.
        spread: whether the result reaches every rank, or stays with its owner.
    """

    op: Op | None
    weights: Sequence[float]
    codec: Codec | PlacedCodec | None = None
    update: Update | None = None
    mix: float = 0.0
    finite: bool = False
    spread: bool = True


class Scratches:
    """The memory that combining needs, for each level; kept from pass to pass."""

    def __init__(self, dtype: np.dtype[Any], hosts: int, *, large: bool) -> None:
        self.dtype = dtype
        length = max(CHUNK, chunk_length(hosts, dtype))
        self.of_host = Scratch(length, dtype, large=large)
        self.of_hosts = Scratch(length, dtype, large=large)


def chunk_length(hosts: int, dtype: np.dtype[Any]) -> int:
    """The most elements of a chunk: on one host what caches hold, else what wires like.

    Every chunk under way takes a buffer for every other host.
    """
    return CHUNK if hosts == 1 else max(1, _WIRE_BYTES // (hosts * dtype.itemsize))


class Pass:
    """One rank's work for one buffer of ``count`` elements.

    Attributes:
        atoms: the atoms of the buffer.
        chunks: how many chunks each of them is cut into.
        host_read, host_written: bytes of neighbours' memory so far.
        is_finite: whether all that this rank has written so far was finite, if it was to be.
    """

    def __init__(
        self, mail: Mail, topology: Topology, rank: int, job: Job, count: int, scratch: Scratches
    ) -> None:
        self.atoms = atoms(count, topology)
        self.chunks = 0
        self.host_read = self.host_written = 0
        self.is_finite = True
        self._job, self._scratch = job, scratch
        self._home = topology.host_of[rank]
        self._ranks = topology.hosts[self._home]
        self._me = self._ranks.index(rank)
        self._weights = [job.weights[r] for r in self._ranks]
        counted = [i for i, weight in enumerate(self._weights) if weight > 0]
        self._alone = counted[0] if len(counted) == 1 else None
        self._host_weights = [sum(job.weights[r] for r in ranks) for ranks in topology.hosts]
        held = [(i, a) for i, a in enumerate(self.atoms) if a.holders[self._home] == rank]
        self._owned = [(i, atom) for i, atom in held if atom.home == self._home]
        self._lent = [(i, atom) for i, atom in held if atom.home != self._home]
        self._wires = Wires(mail, scratch.dtype, job.codec)
        alone = job.op is not None and job.codec is None and not job.mix and job.spread
        # A compiled loop for the whole shard, with what comes between combining and writing back.
        self._loop = None
        rule = getattr(job.update, "rule", None)
        within = rule is not None or job.update is None
        if alone and job.op is not None and len(topology.hosts) == 1 and within:
            loop_of = scratch.of_host.loop_of
            self._loop = loop_of(job.op, self._weights, rule, finite=job.finite)
        # Nothing comes between.
        plain = job.update is None and not job.finite
        self._everywhere = alone and (plain or self._loop is not None)
        # Results lie in scratch memory until they are written.
        self._apart = bool(job.mix) or (job.finite and self._loop is None)
        self._in_place = job.codec is None and not self._apart

    def run(self, local: Sequence[Array]) -> None:
        """Works through the whole buffer; ``local`` are the host's copies of it, by rank."""
        one_host = len(self._host_weights) == 1
        length = chunk_length(len(self._host_weights), self._scratch.dtype)
        self.cut(length if self._loop is None else local[self._me].size)
        most = _LAG_BEHIND if BEHIND.get() else _LAG
        lag = 0 if one_host else min(most, max(self.chunks - 1, 0))
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
        if job.op is None:
            return
        for i, atom in self._owned:
            for host, holder in enumerate(atom.holders):
                if host != self._home and self._host_weights[host] > 0:
                    length = _length(atom.chunk(index, self.chunks))
                    self._wires.expect((i, index, host), length, holder, MEAN)
        if self._host_weights[self._home] > 0:
            for i, atom in self._lent:
                values = self._of_host(local, where(i, index), keep=True)
                message = self._wires.encoded(values, atom.chunk(index, self.chunks), "values")
                self._wires.post(message, atom.owner, MEAN, index)

    def _combine(self, local: Sequence[Array], where: Where, index: int) -> None:
        job = self._job
        self._wires.finish(MEAN, index)
        for i, atom in self._lent if job.spread else ():
            # What was sent from here may be overwritten now.
            mine = local[self._me][where(i, index)]
            into = mine if self._in_place else None
            self._wires.expect((i, index, atom.home), mine.size, atom.owner, RESULT, into)
        for i, atom in self._owned:
            place, part = where(i, index), atom.chunk(index, self.chunks)
            if job.op is None:
                result = local[self._me][place]
            else:
                result = self._sum_hosts(local, place, i, atom, index)
            if job.update is not None and self._loop is None and part.start < part.stop:
                self._update(part, result)
            others = [r for r in atom.holders if r != atom.owner] if job.spread else []
            apart = self._apart
            if job.finite and not self._everywhere and self._write_finite(local, place, result):
                # Sent from where it stays.
                result, apart = local[self._me][place], False
            if others:
                message = self._wires.encoded(result.copy() if apart else result, part, "result")
                if job.codec is not None:
                    result[...] = self._wires.decoded(message, part, "result")
                for holder in others:
                    self._wires.post(message, holder, RESULT, index)
            if self._everywhere:
                self.host_written += (len(local) - 1) * result.nbytes
            elif not job.finite:
                self._write(local, place, result, is_mine=not self._apart)

    def _accept(self, local: Sequence[Array], where: Where, index: int) -> None:
        for i, atom in self._lent if self._job.spread else ():
            part = atom.chunk(index, self.chunks)
            result = self._wires.arrived((i, index, atom.home), part, "result")
            if self._job.finite:
                self._write_finite(local, where(i, index), result)
            else:
                self._write(local, where(i, index), result, is_mine=self._in_place)
        self._wires.finish(RESULT, index)

    def _update(self, part: slice, values: Array) -> None:
        """Shows the update what was combined, but for what was to be finite and is not."""
        assert self._job.update is not None
        for run in finite_runs(values) if self._job.finite else [slice(0, values.size)]:
            place = slice(part.start + run.start, part.start + run.stop)
            self._job.update(place, values[run])

    def _targets(self, local: Sequence[Array], place: slice) -> list[Array]:
        """Where a result of this rank's shard goes at once; to nowhere yet if it lies apart."""
        if self._apart:
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

    def _of_host(self, local: Sequence[Array], place: slice, *, keep: bool = False) -> Array:
        """As ``_sum_host``; where one rank's values are all there is, they themselves.

        Args:
            keep: whether they must outlast the next call.
        """
        if self._alone is not None:
            return self._parts(local, place)[self._alone]
        return self._sum_host(
            local, place, [np.empty(_length(place), self._scratch.dtype)] if keep else ()
        )

    def _sum_hosts(
        self, local: Sequence[Array], place: slice, i: int, atom: Atom, index: int
    ) -> Array:
        """The values of all hosts combined, in the targets or until the next call."""
        assert self._job.op is not None
        if len(self._host_weights) == 1 and self._everywhere:
            parts = self._parts(local, place)
            if self._loop is None:
                self._scratch.of_host.combine(self._job.op, parts, self._weights, parts)
            else:
                part = atom.chunk(index, self.chunks)
                here = slice(part.start - atom.start, part.stop - atom.start)
                self.is_finite = self._loop(here, parts) and self.is_finite
            return parts[self._me]
        outs = self._targets(local, place)
        if len(self._host_weights) == 1:
            return self._sum_host(local, place, outs)
        part = atom.chunk(index, self.chunks)
        means = [
            self._own_mean(local, place, part)
            if host == self._home
            else self._wires.arrived((i, index, host), part, "values")
            for host, weight in enumerate(self._host_weights)
            if weight > 0
        ]
        weights = [weight for weight in self._host_weights if weight > 0]
        return self._scratch.of_hosts.combine(self._job.op, means, weights, outs)

    def _own_mean(self, local: Sequence[Array], place: slice, part: slice) -> Array:
        """This host's values combined, as the other hosts' are where a codec treats them alike."""
        values = self._of_host(local, place)
        if not self._wires.treats_hosts_alike:
            return values
        return self._wires.decoded(self._wires.encoded(values, part, "values"), part, "values")

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

    def _write_finite(self, local: Sequence[Array], place: slice, result: Array) -> bool:
        """Brings what is finite of a result to this host's ranks; whether they hold it all now."""
        is_finite = write_finite(result, [memory[place] for memory in local], self._job.mix)
        self.is_finite = self.is_finite and is_finite
        self.host_written += (len(local) - 1) * result.nbytes
        return is_finite and not self._job.mix


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length
