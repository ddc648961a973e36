"""Muon: momentum whose singular values are all moved near 1, for weight matrices.

Sources: Jordan et al., Muon (2024); Liu et al., Muon is Scalable (arXiv 2502.16982) for
"match_rms_adamw"; constants and the order of arithmetic of torch.optim.Muon, which rounds the
iteration to bfloat16. Here it is done in the dtype of the state, so the two agree to bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from localsgd.checks import checked_count, checked_flag, checked_number
from localsgd.comm.contract import Array
from localsgd.optim.block import Block
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.param_groups import Group, ParamsLike

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADJUSTMENTS = (None, "original", "match_rms_adamw")


class Muon(Optimizer):
    """Muon, for parameters of two dimensions; others go to another optimizer.

        buffer    = momentum · buffer + (1 - momentum) · grad
        direction = (1 - momentum) · grad + momentum · buffer      (not Nesterov: buffer)
        params    = (1 - lr · weight_decay) · params
        params    = params - lr · scale · orthogonalized(direction)

    For a matrix of n rows and m columns ``scale`` is √max(1, n / m), or with
    ``adjust_lr_fn="match_rms_adamw"`` 0.2 · √max(n, m). The buffer is ``momentum_buffer`` in
    ``state``. A step makes temporaries of the size of one matrix.
    """

    state_keys = ("momentum_buffer",)
    by_parameter = True
    dimensions = 2
    means_state = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
            },
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        coefficients = group["ns_coefficients"]
        if not isinstance(coefficients, tuple | list) or len(coefficients) != 3:
            raise TypeError(f"ns_coefficients must be three numbers, got {coefficients!r}")
        if group["adjust_lr_fn"] not in ADJUSTMENTS:
            raise ValueError(
                f"adjust_lr_fn must be one of {', '.join(map(repr, ADJUSTMENTS))}, "
                f"got {group['adjust_lr_fn']!r}"
            )
        return {
            "lr": checked_number("lr", group["lr"]),
            "weight_decay": checked_number("weight_decay", group["weight_decay"]),
            "momentum": checked_number("momentum", group["momentum"], below=1.0),
            "nesterov": checked_flag("nesterov", group["nesterov"]),
            "ns_coefficients": tuple(
                checked_number(f"ns_coefficients[{index}]", value, at_least=-np.inf)
                for index, value in enumerate(coefficients)
            ),
            "eps": checked_number("eps", group["eps"]),
            "ns_steps": checked_count("ns_steps", group["ns_steps"], at_least=0),
            "adjust_lr_fn": group["adjust_lr_fn"],
        }

    def kept(self, group: Group) -> tuple[str, ...]:
        return self.state_keys

    def update(self, group: Group, block: Block) -> None:
        params, direction, scratch = block.params, block.grad, block.scratch
        buffer, momentum = block.state["momentum_buffer"], group["momentum"]
        np.subtract(direction, buffer, out=scratch)
        scratch *= 1 - momentum
        buffer += scratch
        if group["nesterov"]:
            np.subtract(buffer, direction, out=scratch)
            scratch *= momentum
            direction += scratch
        else:
            direction = buffer
        rows, columns = params.shape
        scale = sqrt(max(1.0, rows / max(columns, 1)))
        if group["adjust_lr_fn"] == "match_rms_adamw":
            scale = 0.2 * sqrt(max(rows, columns))
        step = orthogonalized(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
        step *= group["lr"] * scale
        params *= 1 - group["lr"] * group["weight_decay"]
        params -= step


def orthogonalized(
    matrix: Array, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Array:
    """A new matrix with the singular vectors of ``matrix`` and singular values near 1.

        X = matrix / max(norm of matrix, eps)
        X = a · X + (b · A + c · A²) X   with A = X Xᵀ, so many times

    With the usual coefficients and 5 steps, singular values of X above about 0.01 end between
    0.6 and 1.3; zero stays zero.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (max(float(np.linalg.norm(x)), eps) or 1.0)
    for _ in range(steps):
        gram = x @ x.T
        polynomial = b * gram + c * (gram @ gram)
        x = a * x + polynomial @ x
    return x.T if tall else x
