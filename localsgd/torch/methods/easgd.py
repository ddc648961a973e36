"""Elastic averaging SGD in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from localsgd.averagers import Ahead
from localsgd.checks import checked_flag
from localsgd.comm.contract import Array
from localsgd.methods import check_nesterov, look_ahead_of, recipes
from localsgd.torch.arrays import Form
from localsgd.torch.averagers import names_in
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EASGD(FrontDoor):
    """As ``localsgd.EASGD``; ``flush`` gives all workers the centre."""

    def __init__(
        self,
        optim: Optimizer,
        period: int = 10,
        *,
        beta: float = 0.9,
        alpha: float | None = None,
        look_ahead: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Collective; numbers as in ``localsgd.EASGD``, options and errors as in ``LocalSGD``."""

        def ahead() -> Ahead | None:
            if not checked_flag("look_ahead", look_ahead):
                return None
            if not isinstance(optim, SGD):
                raise TypeError(
                    f"look_ahead must have a torch.optim.SGD, got a {type(optim).__name__}"
                )
            check_nesterov(optim.param_groups)
            return look_ahead_of(lambda: _momenta(optim))

        super().__init__(optim, recipes.easgd(period, beta, alpha, ahead), **options)


def _momenta(optim: SGD) -> Iterator[tuple[str, Mapping[str, Any], Array]]:
    """Every parameter's momentum, on the host and in the parameter's order of elements."""
    for index, group in enumerate(optim.param_groups):
        for name, param in zip(names_in(index, group), group["params"], strict=True):
            buffer = optim.state.get(param, {}).get("momentum_buffer")
            if isinstance(buffer, Tensor):
                yield name, group, Form.of(param).array(buffer.cpu())
