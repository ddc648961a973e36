"""Adam with decoupled weight decay.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101),
Algorithm 2, with the constants and the order of arithmetic of torch.optim.AdamW.
"""

from __future__ import annotations

from localsgd.optim.adam import Adam
from localsgd.optim.param_groups import ParamsLike


class AdamW(Adam):
    """Adam with decoupled weight decay.

    As ``Adam``, but its first line is

        params = (1 - lr · weight_decay) · params
    """

    decoupled = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
        )
