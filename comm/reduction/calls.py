"""A reduction from its arguments to its end: looked at, compared between the ranks, and run.

Small averages are made again and again, and then looking at the arguments is what takes time. A
plain call with the same buffer as before goes by what was found then; its header is compared all
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import ReferenceType, ref

import numpy as np

from ..codecs import Codec, PlacedCodec
from ..contract import Array, Op, Transport, Update
from ..meeting import Entrance, Header, OwnErrors, Prepared, arguments, header
from .arithmetic import scaled_weights
from .fused import Job
from .native import reduce_natively
from .route import Reducer
from .small import Small

_MOST_REMEMBERED = 64


@dataclass(frozen=True)
class _Repeat:
    """A plain call and what was found of it: no weight, codec, update or mix.

    Attributes:
        buffer: weak, since memory must not live on for this.
        small: how it is reduced, if the values are shown with the headers.
    """

    verb: str
    op: Op
    finite: bool
    buffer: ReferenceType[Array]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    call: Prepared
    job: Job
    small: Small | None


class Reductions:
    """The reductions of one rank of a group."""

    def __init__(
        self,
        entrance: Entrance,
        reducer: Reducer,
        own_errors: OwnErrors,
        size: int,
        shard: Callable[[int], slice],
        native: Transport | None,
    ) -> None:
        """
        Args:
            native: what reduces in place of us; None for the exact reduction.
        """
        self._entrance, self._reducer, self._own_errors = entrance, reducer, own_errors
        self._shard, self._native = shard, native
        self._equal_weights = [1.0] * size
        self._repeats: dict[int, _Repeat] = {}

    def reduce(
        self,
        verb: str,
        buffer: Array,
        op: Op,
        weight: float | None,
        codec: Codec | PlacedCodec | None,
        update: Update | None,
        mix: float = 0.0,
        finite: bool = False,
        label: str = "",
    ) -> None:
        """What ``allreduce`` and ``reduce_scatter`` say."""
        plain = weight is None and codec is None and update is None and not mix
        known = None
        if plain and type(label) is str:
            known = self._known(verb, op, finite, buffer)
        if known is not None:
            call, job, small = known.call, known.job, known.small
        else:
            with self._own_errors:
                arguments.buffer("buffer", buffer)
                arguments.operation(op, buffer.dtype, weight)
                arguments.mix(mix, buffer.dtype)
                arguments.codec(codec, buffer)
                arguments.finite(finite, op, codec)
                if codec is not None and self._native is not None:
                    raise ValueError(f"reduction 'native' has no codecs, got {codec.name}")
                arguments.update(update)
                arguments.label(label)
            updates = update is not None
            said = Header(verb, op, has_update=updates, finite=finite, mix=float(mix))
            said = said._replace(weight=weight)
            call = Prepared(self._reducer.describe(said, buffer, codec))
            job = Job(op, self._equal_weights, codec, update, mix, finite, verb == "allreduce")
            small = None
            if update is None and self._native is None:
                small = self._reducer.small(op, buffer, plain=plain)
            if plain:
                shape, dtype = buffer.shape, buffer.dtype
                found = _Repeat(verb, op, finite, ref(buffer), shape, dtype, call, job, small)
                self._remember(found)
        call.detail = label if codec is None else f"{label}, codec {codec.name}"
        if small is not None:
            self._run_small(small, call, job, buffer)
            return
        headers = self._entrance.enter(call)
        job = _weighted(job, headers)
        if self._native is None:
            self.run(job, buffer)
            return
        spread = Job(None, job.weights)
        own = self._shard(buffer.size)
        try:
            is_finite = reduce_natively(
                self._native, job, buffer, own, lambda values: self.run(spread, values)
            )
        except BaseException as error:
            self._entrance.fail(error)
            raise
        if not is_finite:
            self._reducer.require_finite(job, buffer)

    def broadcast(self, buffer: Array, root: int) -> None:
        """What ``broadcast`` says."""
        # The mean of which only the root has a weight: its values, copied.
        job = Job("mean", [float(rank == root) for rank in range(len(self._equal_weights))])
        call = Prepared(self._reducer.describe(Header("broadcast", root=root), buffer))
        small = self._reducer.small("mean", buffer, plain=False)
        if small is not None:
            self._run_small(small, call, job, buffer)
        else:
            self._entrance.enter(call)
            self.run(job, buffer)

    def run(self, job: Job, buffer: Array) -> None:
        """Runs a job that all ranks have entered with; tells the others if it fails here."""
        try:
            is_finite = self._reducer.run(job, buffer)
        except BaseException as error:
            self._entrance.fail(error)
            raise
        if not is_finite:
            self._reducer.require_finite(job, buffer)

    def _run_small(self, small: Small, call: Prepared, job: Job, buffer: Array) -> None:
        # Overflow and NaN in the data are the data's business.
        with np.errstate(all="ignore"):
            small.show(buffer)
            job = _weighted(job, self._entrance.enter(call, small.offer))
            try:
                is_finite = self._reducer.run_small(small, job, buffer)
            except BaseException as error:
                self._entrance.fail(error)
                raise
            if not is_finite:
                self._reducer.require_finite(job, buffer)

    def _known(self, verb: str, op: Op, finite: bool, buffer: Array) -> _Repeat | None:
        """The same call, if it was made before and the buffer is as it was."""
        known = self._repeats.get(id(buffer))
        if (
            known is not None
            and known.buffer() is buffer
            and known.verb == verb
            and known.op == op
            and known.finite is finite
            and known.shape == buffer.shape
            and known.dtype == buffer.dtype
            and buffer.flags.writeable
        ):
            return known
        return None

    def _remember(self, repeat: _Repeat) -> None:
        if len(self._repeats) >= _MOST_REMEMBERED:
            self._repeats.clear()
        self._repeats[id(repeat.buffer())] = repeat


def _weighted(job: Job, headers: Sequence[bytes]) -> Job:
    """The job with the weights that are in the headers, if there are any."""
    if not header.has_weight(headers[0]):
        return job
    weights = scaled_weights([header.weight_of(packed) for packed in headers])
    return replace(job, weights=weights)
