"""How far Nesterov's momentum has the parameters ahead: what EAMSGD goes back for its force.

With v = -lr · buffer the step of SGD in Nesterov's form is, for x = params - momentum · v,

    v = momentum · v - lr · gradient(x + momentum · v)        x = x + v

at a constant rate: the paper's x is params + lr · momentum · buffer. Where the rate changes, it is
the buffer that goes on, as in torch.

Source: Zhang, Choromanska and LeCun (arXiv 1412.6651), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from localsgd.arrays import Arena
from localsgd.averagers import Ahead
from localsgd.comm.contract import Array

# For every parameter that has one its name, its group, and its momentum's buffer, in the order of
# the arena's elements.
Momenta: TypeAlias = Callable[[], Iterable[tuple[str, Mapping[str, Any], Array]]]


def look_ahead_of(momenta: Momenta) -> Ahead:
    """What the momentum of SGD is ahead by: ``-lr · momentum · buffer``."""

    def ahead(arenas: Sequence[Arena]) -> list[Array]:
        found = [np.zeros_like(arena.flat) for arena in arenas]
        views: dict[str, Array] = {}
        for arena, flat in zip(arenas, found, strict=True):
            views.update(arena.layout.views(flat))
        for name, group, buffer in momenta():
            if name in views and group["nesterov"]:
                view = views[name]
                factor = -float(group["lr"]) * float(group["momentum"])
                view[...] = (buffer * factor).reshape(view.shape)
        return found

    return ahead


def check_nesterov(param_groups: Sequence[Mapping[str, Any]]) -> None:
    """
    Raises:
        ValueError: unless every group has momentum in Nesterov's form.
    """
    for group in param_groups:
        if not group["nesterov"]:
            raise ValueError(
                "look_ahead must have SGD with nesterov=True in every group, got momentum "
                f"{group['momentum']} without it"
            )
