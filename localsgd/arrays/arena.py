"""Where the numbers are: named parameters as shaped views of one buffer that can be averaged.

The buffer comes from the communicator, so a round is one pass over memory without a copy. It
never moves: views taken once stay valid through rounds, loads and changes of the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localsgd.arrays.layout import Layout, check_parameters
from localsgd.arrays.named import NamedViews
from localsgd.checks import agreed, difference_of, lines_of_values, workers_of
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.errors import MismatchError

Arenas: TypeAlias = "Arena | Sequence[Arena]"


class FlatArrays(NamedViews):
    """Named arrays that are shaped views of one flat buffer.

    ``arrays["w"] = values`` copies into the view; names and shapes are fixed.
    """

    def __init__(self, layout: Layout, flat: Array) -> None:
        super().__init__(layout.views(flat))
        self._layout = layout
        self._flat = flat

    @property
    def flat(self) -> Array:
        """The whole buffer, shape ``(count,)``; its memory is that of the views."""
        return self._flat

    @property
    def layout(self) -> Layout:
        """Names, shapes and dtype."""
        return self._layout

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the buffer."""
        return self._layout.names

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the buffer and of every view."""
        return self._layout.dtype

    def slice_of(self, name: str) -> slice:
        """The part of ``flat`` that holds this parameter."""
        return self._layout.parts[name]

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name}{list(shape)}"
            for name, shape in zip(self.names[:6], self._layout.shapes, strict=False)
        )
        more = f", and {len(self) - 6} more" if len(self) > 6 else ""
        count = f"{self._layout.count:,} elements of {self.dtype.name}"
        return f"{type(self).__name__}({shapes}{more}: {count}{self._where()})"

    def _where(self) -> str:
        return ""


class Arena(FlatArrays):
    """A model's parameters, of one dtype, in memory that workers average in place.

    A model of several dtypes is a sequence of arenas.

    >>> import numpy as np
    >>> arena = Arena({"w": np.ones((2, 3)), "b": np.zeros(3)})
    >>> arena
    Arena(w[2, 3], b[3]: 9 elements of float64, rank 0 of 1)
    >>> arena.grad["b"] += 1.0
    >>> arena.grad.flat
    array([0., 0., 0., 0., 0., 0., 1., 1., 1.])
    """

    def __init__(
        self,
        params: Mapping[str, NDArray[Any]],
        comm: Communicator | None = None,
        *,
        start: Literal["broadcast", "check", "keep"] = "broadcast",
        grad: bool = True,
    ) -> None:
        """Copies ``params`` in, agrees on them with the other ranks, and gives all equal values.

        Collective. Sends the parameters once with ``start="broadcast"``, digests with "check".

        Args:
            params: the names and initial values, of dtype float16, bfloat16, float32 or
                float64; left as they are and not used afterwards.
            comm: the workers that hold this model; None means ``localsgd.world()``.
            start: how workers come to start equal: "broadcast" gives all the values of rank
                0, "check" requires that they are equal already, to the bit; "keep" leaves each
                its own, for values that training has already moved apart.
            grad: whether to have a buffer for gradients; ``add_grad`` makes it later.

        Raises:
            TypeError, ValueError: if this rank's ``params`` are invalid (``check_parameters``).
            MismatchError: on every rank, if another rank's are invalid, if names, order, shapes
                or dtypes differ, or, with "check", values: with the first difference and the
                ranks.
            MemoryError: on every rank, if the memory of one host does not suffice.
        """
        self._comm = workers_of(comm)

        def prepare() -> Layout:
            check_parameters(params)
            if start not in ("broadcast", "check", "keep"):
                raise ValueError(f"start must be 'broadcast', 'check' or 'keep', got {start!r}")
            return Layout.of(params)

        layout = agreed(
            self._comm, "parameters", prepare, lambda made: [*made.lines(), f"start={start!r}"]
        )
        super().__init__(layout, self._comm.allocate(layout.count, layout.dtype))
        self._grad: FlatArrays | None = None
        if grad:
            self.add_grad()
        for name, view in self.items():
            view[...] = params[name]
        if start == "broadcast":
            self._comm.broadcast(self.flat, 0)
        elif start == "check":
            _check_equal(self._comm, self)

    @property
    def comm(self) -> Communicator:
        """The workers that hold this model."""
        return self._comm

    @property
    def grad(self) -> FlatArrays:
        """The gradients: the same names and shapes in a second buffer, zero at first."""
        if self._grad is None:
            raise ValueError("an Arena must have been made with grad=True, or add_grad called")
        return self._grad

    def add_grad(self) -> None:
        """Makes the buffer for gradients, unless there is one. Collective."""
        if self._grad is None:
            made = self._comm.allocate(self._layout.count, self._layout.dtype)
            self._grad = FlatArrays(self._layout, made)

    def section(self, names: Sequence[str]) -> Arena:
        """Parameters that follow each other as an arena of their own on the same memory.

        Not collective.

        Raises:
            ValueError: unless ``names`` are neighbours in the order of the arena.
        """
        first = self.names.index(names[0]) if names and names[0] in self._views else 0
        if not names or self.names[first : first + len(names)] != tuple(names):
            raise ValueError(f"names must be neighbours in the arena, got {list(names)}")
        layout = Layout(
            tuple(names), self._layout.shapes[first : first + len(names)], self._layout.dtype
        )
        place = slice(self.slice_of(names[0]).start, self.slice_of(names[-1]).stop)
        part = Arena.__new__(Arena)
        FlatArrays.__init__(part, layout, self.flat[place])
        part._comm = self._comm
        part._grad = None if self._grad is None else FlatArrays(layout, self._grad.flat[place])
        return part

    def subset(self, names: Iterable[str]) -> Subset:
        """Some of the parameters, for a parameter group; kept in the order of the arena.

        Raises:
            ValueError: if a name is not in the arena or is given twice.
        """
        given = [names] if isinstance(names, str) else list(names)
        for name in given:
            if name not in self._views:
                raise ValueError(f"names must be parameters of the arena, got {name!r}")
        if len(set(given)) < len(given):
            raise ValueError(f"names must be distinct, got {given}")
        return Subset(self, tuple(name for name in self.names if name in set(given)))

    def _where(self) -> str:
        return f", rank {self._comm.rank} of {self._comm.size}"


@dataclass(frozen=True)
class Subset:
    """Some parameters of an arena.

    Attributes:
        arena: the arena.
        names: the parameters, in the order of the arena.
    """

    arena: Arena
    names: tuple[str, ...]


def as_arenas(params: Arenas) -> tuple[Arena, ...]:
    """The arenas of one model.

    Raises:
        TypeError: for anything but an arena or a sequence of arenas.
        ValueError: if the sequence is empty.
    """
    if isinstance(params, Arena):
        return (params,)
    if not isinstance(params, Sequence) or not all(isinstance(entry, Arena) for entry in params):
        raise TypeError(f"params must be an Arena or a sequence of Arenas, got {params!r}")
    if not params:
        raise ValueError("params must hold at least one Arena, got an empty sequence")
    return tuple(params)


def _check_equal(comm: Communicator, arena: Arena) -> None:
    difference = difference_of(comm, lines_of_values("parameter", arena))
    if difference is not None:
        raise MismatchError(
            f"with start='check' all ranks must start from equal values, got {difference}"
        )
