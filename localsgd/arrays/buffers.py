"""What a model keeps besides its parameters: named arrays, each with a rule for its average.

A batch normalisation has running means, running variances and a counter. The means are averaged,
the counter becomes the largest, and the variance is that of all workers' data together, since the
variance of a mixture is the mean of the variances plus the variance of the means. What is pooled
so is computed from differences to the mean, which are 0 for identical workers: their bits stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from localsgd.arrays.layout import Layout
from localsgd.arrays.named import NamedViews
from localsgd.arrays.rules import (
    Derived,
    Rule,
    Variance,
    WeightedMean,
    checked_rules,
    spread,
    words_of_rule,
)
from localsgd.checks import agreed, difference_of, lines_of_values, workers_of
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import FLOATS, work_dtype
from localsgd.comm.errors import MismatchError
from localsgd.resizing import SavedStates

# What is no number to the communicator travels as this many of others.
_CARRIERS: Mapping[np.dtype[Any], tuple[np.dtype[Any], int]] = {
    np.dtype(bool): (np.dtype(np.uint8), 1),
    np.dtype(np.complex64): (np.dtype(np.float32), 2),
    np.dtype(np.complex128): (np.dtype(np.float64), 2),
}


@dataclass(frozen=True)
class _Store:
    """The buffers of one rule and dtype, in one stretch of memory.

    Attributes:
        rule: a plain rule, or the class of another.
        flat: the memory as numbers that can be reduced, shape ``(count,)``.
        views: the buffers in it, by name.
        wide: memory to pool in, shape ``(count,)``, in the dtype of the arithmetic; else None.
        wide_views: the same as the views.
    """

    rule: str
    flat: Array
    views: Mapping[str, Array]
    wide: Array | None
    wide_views: Mapping[str, Array]


class Buffers(NamedViews):
    """Named arrays that training does not step, averaged along with the parameters.

    ``buffers["running_mean"]`` is a view that stays valid; write into it. Rules:

    - ``"mean"``: floats and complex numbers; ``Variance`` and ``WeightedMean``: floats.
    - ``"max"``, ``"min"``: the largest and smallest of all workers', whatever they weigh; of
      floats, integers (a counter) and booleans (any and all).
    - ``"equal"``: compared before every round, as a mask; a difference is an error.
    - ``"keep"``: each worker keeps its own.
    - ``Derived``: computed anew.

    >>> import numpy as np
    >>> values = {"mean": np.zeros(3), "var": np.ones(3), "batches": np.array(0)}
    >>> Buffers(values, {"var": Variance(mean="mean")})
    Buffers(mean[3]: mean, var[3]: Variance(mean='mean'), batches[]: max)
    """

    def __init__(
        self,
        values: Mapping[str, NDArray[Any]],
        rules: Mapping[str, Rule] | None = None,
        comm: Communicator | None = None,
        *,
        start: Literal["broadcast", "keep"] = "broadcast",
    ) -> None:
        """Copies ``values`` in and agrees on names, shapes, dtypes and rules. Collective.

        Args:
            values: names and initial values: floats, integers, booleans or complex numbers; not
                used afterwards.
            rules: by name or pattern (``"*.mask"``), of those buffers that are to have another than
                "max" for integers, "equal" for booleans, "mean" for floats and complex numbers, and
                "keep" where any of them is not finite, as in a mask of -inf: the mean of infinities
                is NaN.
            comm: the workers that hold this model; None means ``localsgd.world()``.
            start: "broadcast" gives all workers the values of rank 0; "keep" leaves each its own.

        Raises:
            TypeError, ValueError: if this rank's values or rules are invalid.
            MismatchError: on every rank, if they differ or those of another rank are invalid.
        """
        self._comm = workers_of(comm)

        def prepare() -> dict[str, Rule]:
            if start not in ("broadcast", "keep"):
                raise ValueError(f"start must be 'broadcast' or 'keep', got {start!r}")
            return checked_rules(values, rules)

        self._rules = agreed(
            self._comm, "buffers", prepare, lambda made: [*_lines(values, made), f"start={start!r}"]
        )
        self._stores: list[_Store] = []
        views: dict[str, Array] = {}
        for (kind, dtype), names in self._by_kind(values).items():
            store = self._store(kind, dtype, {name: values[name].shape for name in names})
            views.update(store.views)
            self._stores.append(store)
        super().__init__({name: views[name] for name in values})
        for name, view in self._views.items():
            view[...] = values[name]
        if start == "broadcast":
            for store in self._stores:
                self._comm.broadcast(store.flat, 0)

    @property
    def comm(self) -> Communicator:
        """The workers that hold this model."""
        return self._comm

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rule of every buffer."""
        return self._rules

    def __repr__(self) -> str:
        parts = [
            f"{name}{list(view.shape)}: {words_of_rule(self._rules[name])}"
            for name, view in self.items()
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def words(self) -> str:
        return "buffers"

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Compares the buffers that must be equal; names, shapes and rules were agreed on.

        Raises:
            MismatchError: on every rank of the group, naming the first that differs.
        """
        same = {name: self[name] for name, rule in self._rules.items() if rule == "equal"}
        if same:
            require_equal(group, lines_of_values("buffer", same))

    def join(self, group: Communicator, weight: float | None) -> None:
        """Brings every buffer to its average over the group. Collective.

        Needs memory of the size of what is pooled, taken at construction.
        """
        numbers = self._before_pooling()
        for store in self._stores:
            if store.rule in ("mean", "WeightedMean"):
                group.allreduce(store.flat, "mean", weight=weight, label="buffers, mean")
            elif store.rule in ("max", "min"):
                op: Literal["max", "min"] = "max" if store.rule == "max" else "min"
                group.allreduce(store.flat, op, label=f"buffers, {op}")
        self._pool(group, weight, numbers)
        self._derive(group)

    def _before_pooling(self) -> dict[str, Array]:
        """Puts aside this worker's own values that pooling needs; gives the numbers of each."""
        numbers: dict[str, Array] = {}
        for name, wide, rule in self._pooled():
            if isinstance(rule, Variance):
                wide[...] = self._views[rule.mean]
            else:
                wide[...] = self._views[name]
                numbers[name] = self._views[rule.by].astype(wide.dtype)
        return numbers

    def _pool(
        self, group: Communicator, weight: float | None, numbers: Mapping[str, Array]
    ) -> None:
        with np.errstate(all="ignore"):
            for name, wide, rule in self._pooled():
                mean = self._views[rule.mean if isinstance(rule, Variance) else name]
                wide -= mean.astype(wide.dtype)
                if isinstance(rule, Variance):
                    np.square(wide, out=wide)
                    wide += self._views[name].astype(wide.dtype)
                else:
                    wide *= spread(numbers[name], wide.shape)
        for store in self._stores:
            if store.wide is not None:
                group.allreduce(store.wide, "mean", weight=weight, label=f"buffers, {store.rule}")
        for name, wide, rule in self._pooled():
            if isinstance(rule, Variance):
                self._views[name][...] = wide
            else:
                number = spread(self._views[rule.by].astype(wide.dtype), wide.shape)
                shift = np.divide(wide, number, out=np.zeros_like(wide), where=number > 0)
                self._views[name][...] = self._views[name].astype(wide.dtype) + shift

    def _pooled(self) -> Iterator[tuple[str, Array, Variance | WeightedMean]]:
        """Every buffer that is pooled: its name, wide memory and rule."""
        for store in self._stores:
            for name, wide in store.wide_views.items():
                rule = self._rules[name]
                assert isinstance(rule, Variance | WeightedMean)
                yield name, wide, rule

    def _derive(self, group: Communicator) -> None:
        """Computes on the group's first worker what follows from the rest; all get it."""
        derived = [(name, rule) for name, rule in self._rules.items() if isinstance(rule, Derived)]
        if not derived:
            return

        def compute() -> None:
            for name, rule in derived if group.rank == 0 else ():
                self[name] = np.asarray(rule.compute(self))

        agreed(group, "derived buffers", compute, lambda _: ())
        for store in self._stores:
            if store.rule == "Derived":
                group.broadcast(store.flat, 0)

    def state_dict(self) -> dict[str, Array]:
        """A copy of every buffer by name."""
        return {name: view.copy() for name, view in self._views.items()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """What ``state_dict`` gives, of another number of ranks: means of floats. Collective.

        Whole numbers, and what has the rule "keep" or "equal", are as a rank had them.
        """
        return {
            name: saved.at(name).mean() if self._has_mean(name) else values
            for name, values in saved.own.items()
        }

    def _has_mean(self, name: str) -> bool:
        kept = self._rules.get(name) in ("keep", "equal")
        return not kept and name in self._views and self._views[name].dtype in FLOATS

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises what ``load_state_dict`` would, and changes nothing."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"buffers must be a mapping of names to arrays, got {state_dict!r}")
        for name in [*self._views, *state_dict]:
            if name not in state_dict or name not in self._views:
                raise ValueError(
                    f"saved buffers must be {list(self._views)}, got {list(state_dict)}"
                )
            self._check_fits(name, np.asarray(state_dict[name]))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``; not collective.

        Raises:
            TypeError, ValueError: naming the first buffer that does not fit; then nothing has
                changed.
        """
        self.check_state_dict(state_dict)
        for name, view in self._views.items():
            view[...] = state_dict[name]

    def _called(self, name: str) -> str:
        return f"buffer {name!r}"

    def _by_kind(
        self, values: Mapping[str, NDArray[Any]]
    ) -> dict[tuple[str, np.dtype[Any]], list[str]]:
        """The names of every kind of rule and dtype."""
        names: dict[tuple[str, np.dtype[Any]], list[str]] = {}
        for name, array in values.items():
            rule = self._rules[name]
            kind = rule if isinstance(rule, str) else type(rule).__name__
            names.setdefault((kind, array.dtype), []).append(name)
        return names

    def _store(
        self, kind: str, dtype: np.dtype[Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> _Store:
        carrier, parts = _CARRIERS.get(dtype, (dtype, 1))
        layout = Layout(tuple(shapes), tuple(shapes.values()), dtype)
        flat = self._comm.allocate(layout.count * parts, carrier)
        if kind not in ("Variance", "WeightedMean"):
            return _Store(kind, flat, layout.views(flat.view(dtype)), None, {})
        wide = self._comm.allocate(layout.count, work_dtype(dtype))
        return _Store(kind, flat, layout.views(flat), wide, layout.views(wide))


def require_equal(comm: Communicator, lines: list[str]) -> None:
    """Raises on every rank unless the lines that describe the values are equal. Collective."""
    difference = difference_of(comm, lines)
    if difference is not None:
        raise MismatchError(
            f"buffers with rule 'equal' must be equal on all ranks, got {difference}; if they may "
            "differ, give them another rule, as in rules={'mask': 'keep'}"
        )


def _lines(values: Mapping[str, NDArray[Any]], rules: Mapping[str, Rule]) -> list[str]:
    return [
        f"buffer {name!r} {array.dtype.name}{list(array.shape)}, rule {words_of_rule(rules[name])}"
        for name, array in values.items()
    ]
