"""What a model keeps besides its parameters: named arrays, each with a rule for its average.

A batch normalisation has running means, running variances and a counter. The means are averaged,
the counter becomes the largest, and the variance is that of all workers' data together:

    mean = Σ w_i mean_i / W
    var  = Σ w_i (var_i + (mean_i - mean)²) / W

since the variance of a mixture is the mean of the variances plus the variance of the means. The
means of identical workers do not move, so the second term is 0 and their bits stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localsgd.agreement import agreed, workers_of
from localsgd.comm.arithmetic import FLOATS, INTEGERS, work_dtype
from localsgd.comm.base import Array, Communicator
from localsgd.layout import Layout
from localsgd.named import NamedViews


@dataclass(frozen=True)
class Variance:
    """The rule of a buffer of variances.

    Attributes:
        mean: the name of the buffer of the means about which they are.
    """

    mean: str


Rule: TypeAlias = "Literal['mean', 'max', 'keep'] | Variance"


@dataclass(frozen=True)
class _Store:
    """The buffers of one rule and dtype, in one stretch of memory.

    Attributes:
        rule: "mean", "max", "keep" or "variance".
        flat: the memory, shape ``(count,)``.
        layout: where each lies in it.
    """

    rule: str
    flat: Array
    layout: Layout


class Buffers(NamedViews):
    """Named arrays that training does not step, averaged along with the parameters.

    ``buffers["running_mean"]`` is a view that stays valid; write into it. Rules: ``"mean"``
    (floats), ``"max"`` (a counter: the largest of all workers', whatever they weigh),
    ``Variance(mean="running_mean")`` (floats), and ``"keep"`` (each worker keeps its own).

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
            values: names and initial values, floats or integers; not used afterwards.
            rules: of those buffers that are to have another than "max" for integers, "mean" for
                floats, and "keep" for floats of which any is not finite, as in a mask of -inf:
                the mean of infinities is NaN.
            comm: the workers that hold this model; None means ``localsgd.world()``.
            start: "broadcast" gives all workers the values of rank 0, except under "keep";
                "keep" leaves each its own.

        Raises:
            TypeError, ValueError: if this rank's values or rules are invalid.
            MismatchError: on every rank, if they differ or those of another rank are invalid.
        """
        self._comm = workers_of(comm)

        def prepare() -> dict[str, Rule]:
            if start not in ("broadcast", "keep"):
                raise ValueError(f"start must be 'broadcast' or 'keep', got {start!r}")
            return _checked_rules(values, rules)

        self._rules = agreed(
            self._comm, "buffers", prepare, lambda made: [*_lines(values, made), f"start={start!r}"]
        )
        self._stores: list[_Store] = []
        views: dict[str, Array] = {}
        for (kind, dtype), names in self._by_kind(values).items():
            layout = Layout(tuple(names), tuple(values[name].shape for name in names), dtype)
            store = _Store(kind, self._comm.allocate(layout.count, dtype), layout)
            views.update(layout.views(store.flat))
            self._stores.append(store)
        super().__init__({name: views[name] for name in values})
        self._wide = {
            id(store): self._comm.allocate(store.flat.size, work_dtype(store.flat.dtype))
            for store in self._stores
            if store.rule == "variance"
        }
        for name, view in self._views.items():
            view[...] = values[name]
        if start == "broadcast":
            for store in self._stores:
                if store.rule != "keep":
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
            f"{name}{list(view.shape)}: {_words(self._rules[name])}" for name, view in self.items()
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def words(self) -> str:
        return "buffers"

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Nothing is left to find out: names, shapes and rules were agreed on."""

    def join(self, group: Communicator, weight: float | None) -> None:
        """Brings every buffer to its average over the group. Collective.

        Needs memory of the size of the variances, taken at construction.
        """
        variances = [store for store in self._stores if store.rule == "variance"]
        for store in variances:
            for name, wide in store.layout.views(self._wide[id(store)]).items():
                wide[...] = self._views[self._mean_of(name)]
        for store in self._stores:
            if store.rule == "mean":
                group.allreduce(store.flat, "mean", weight=weight, label="buffers, mean")
            elif store.rule == "max":
                group.allreduce(store.flat, "max", label="buffers, max")
        for store in variances:
            wide_flat = self._wide[id(store)]
            with np.errstate(all="ignore"):
                for name, wide in store.layout.views(wide_flat).items():
                    wide -= self._views[self._mean_of(name)].astype(wide.dtype)
                    np.square(wide, out=wide)
                    wide += self._views[name].astype(wide.dtype)
            group.allreduce(wide_flat, "mean", weight=weight, label="buffers, variance")
            store.flat[...] = wide_flat

    def state_dict(self) -> dict[str, Array]:
        """A copy of every buffer by name."""
        return {name: view.copy() for name, view in self._views.items()}

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
            kind = "variance" if isinstance(rule, Variance) else rule
            names.setdefault((kind, array.dtype), []).append(name)
        return names

    def _mean_of(self, name: str) -> str:
        rule = self._rules[name]
        assert isinstance(rule, Variance)
        return rule.mean


def _checked_rules(
    values: Mapping[str, NDArray[Any]], rules: Mapping[str, Rule] | None
) -> dict[str, Rule]:
    """The rule of every buffer, the default ones included."""
    given = {} if rules is None else rules
    if not isinstance(values, Mapping) or not isinstance(given, Mapping):
        raise TypeError(f"values and rules must be mappings by name, got {values!r} and {rules!r}")
    for name in given:
        if name not in values:
            raise ValueError(f"rules must be of buffers that are given, got {name!r}")
    checked: dict[str, Rule] = {}
    for name, array in values.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(f"buffers must be numpy arrays by name, got {name!r}: {array!r}")
        if array.dtype not in FLOATS + INTEGERS:
            raise TypeError(
                f"buffer {name!r} must be of floats or integers, the dtypes that rules "
                f"'mean', 'max' and 'keep' cover, got {array.dtype}"
            )
        rule = given.get(name, _default_rule(array))
        if not isinstance(rule, Variance) and rule not in ("mean", "max", "keep"):
            raise ValueError(
                f"the rule of buffer {name!r} must be 'mean', 'max', 'keep' or a Variance, "
                f"got {rule!r}"
            )
        if array.dtype in INTEGERS and (isinstance(rule, Variance) or rule == "mean"):
            raise TypeError(
                f"rule {_words(rule)} must have a buffer of floats, got {name!r} of {array.dtype}"
            )
        checked[name] = rule
    for name, rule in checked.items():
        if isinstance(rule, Variance):
            _check_mean_of(name, rule, values, checked)
    return checked


def _default_rule(array: NDArray[Any]) -> Rule:
    if array.dtype in INTEGERS:
        return "max"
    return "mean" if np.isfinite(array).all() else "keep"


def _check_mean_of(
    name: str, rule: Variance, values: Mapping[str, NDArray[Any]], rules: Mapping[str, Rule]
) -> None:
    if rules.get(rule.mean) != "mean":
        raise ValueError(
            f"{rule} of buffer {name!r} must name a buffer with rule 'mean', "
            f"got {rules.get(rule.mean, 'no such buffer')!r}"
        )
    if values[rule.mean].shape != values[name].shape:
        raise ValueError(
            f"{rule} of buffer {name!r} must name one of shape {values[name].shape}, "
            f"got {values[rule.mean].shape}"
        )


def _lines(values: Mapping[str, NDArray[Any]], rules: Mapping[str, Rule]) -> list[str]:
    return [
        f"buffer {name!r} {array.dtype.name}{list(array.shape)}, rule {_words(rules[name])}"
        for name, array in values.items()
    ]


def _words(rule: Rule) -> str:
    return repr(rule) if isinstance(rule, Variance) else rule
