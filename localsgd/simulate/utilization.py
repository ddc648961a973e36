"""How much of the time workers compute, if layers are reduced as their gradients come.

The per-layer link model. A step of ``T`` seconds is a chain of nodes of ``T / (3L)`` seconds:
forward of layers 1, …, L; then for L, …, 2 backward to activations and backward to weights; then
backward to weights of layer 1, which has no layer before it. So a step has 3L - 1 nodes. A layer
that is due joins one link, first come first served, when its backward to weights ends; there it
takes ``bits · N / (L · B)`` seconds, without latency. The forward of layer ``l`` in step
``t + 1 + delay`` waits for what layer ``l`` sent after step ``t``.

With two rounds 70 of the 75 crossings of the paper's Table 4 fall into the cell of its grid of
bandwidths that the paper reports, and the other five into a neighbouring one.

Source: Streaming DiLoCo (arXiv 2501.18512), section 3.1, Table 4.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localsgd.checks import checked_count, checked_number

Method: TypeAlias = Literal["data_parallel", "diloco", "streaming"]
Floats: TypeAlias = NDArray[np.float64]


def compute_utilization(
    method: Method,
    *,
    layers: int,
    parameters: float,
    step_time_s: float,
    bandwidth_bit_s: ArrayLike,
    period: int = 1,
    fragments: int = 1,
    delay: int = 0,
    bits: float = 16,
    rounds: int = 2,
) -> Floats | float:
    """Compute time over makespan of some whole rounds, the last reduction included.

        utilisation = rounds · period · (3L - 1) · T / (3L) / makespan

    Data-parallel sends every layer after every step; DiLoCo after every ``period`` steps; streaming
    one strided fragment of layers ``{p, p + P, p + 2P, …}`` after another, the k-th after step
    ``ceil(k · period / P)``, so that each is due once a period.

    Args:
        method: "data_parallel", "diloco" or "streaming".
        layers: ``L``, all alike.
        parameters: ``N``, of all layers.
        step_time_s: ``T``, seconds of compute that 3L nodes take.
        bandwidth_bit_s: ``B``, bit/s (not bytes) of a worker's link, above 0; of any shape.
        period: steps from one sending of a layer to its next; 1 with data-parallel.
        fragments: ``P``, at most ``layers``; 1 unless streaming.
        delay: steps that may pass until a layer that was sent is waited for.
        bits: of a number on its way; 4 for FP4.
        rounds: how many periods to go through. The more there are, the less the last reduction
            counts, which nothing hides; without a delay the number makes no difference.

    Returns:
        A utilisation in (0, 1] for every bandwidth, in the shape given: an array for an array, a
        float for a number.

    Raises:
        TypeError, ValueError: for an argument that is out of range or has no meaning with the
            method.

    Source: Streaming DiLoCo (arXiv 2501.18512), section 3.1.

    >>> found = compute_utilization(
    ...     "diloco", layers=24, parameters=1e9, step_time_s=0.1, bandwidth_bit_s=1e9, period=100
    ... )
    >>> round(found, 4)
    0.3822
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    layers = checked_count("layers", layers, at_least=1)
    period = checked_count("period", period, at_least=1)
    fragments = checked_count("fragments", fragments, at_least=1)
    delay = checked_count("delay", delay, at_least=0)
    rounds = checked_count("rounds", rounds, at_least=1)
    _require_meaning(method, layers, period, fragments)
    size_bits = positive("parameters", parameters) * positive("bits", bits)
    node_s = positive("step_time_s", step_time_s) / (3 * layers)
    # The time of a node is the unit, so that compute is whole numbers and sums of it are exact.
    transfer = size_bits / (layers * bandwidths_of(bandwidth_bit_s)) / node_s
    steps = period * rounds
    compute = steps * (3 * layers - 1)
    found = compute / _makespan(layers, transfer, steps, period, fragments, delay)
    return found if np.ndim(bandwidth_bit_s) else float(found)


def _makespan(
    layers: int, transfer: Floats, steps: int, period: int, fragments: int, delay: int
) -> Floats:
    """Nodes' times until the last step and reduction have ended, for every time of a transfer."""
    now, link_free = np.zeros_like(transfer), np.zeros_like(transfer)
    arrivals: dict[int, dict[int, Floats]] = {}
    sendings = 0
    for step in range(1, steps + 1):
        awaited = arrivals.pop(step, {})
        passed = 0
        for layer in sorted(awaited):
            now = np.maximum(now + (layer - passed), awaited[layer])
            passed = layer
        now = now + (layers - passed)
        due: set[int] = set()
        while -(-(sendings + 1) * period // fragments) == step:
            due.update(range(sendings % fragments, layers, fragments))
            sendings += 1
        arriving = arrivals.setdefault(step + 1 + delay, {})
        for layer in sorted(due, reverse=True):
            # Two nodes for each layer from the last to this one; the first layer has one.
            ended = now + (2 * (layers - layer) - (layer == 0))
            link_free = np.maximum(link_free, ended) + transfer
            arriving[layer] = link_free
        now = now + (2 * layers - 1)
    return np.maximum(now, link_free)


def _require_meaning(method: Method, layers: int, period: int, fragments: int) -> None:
    if method == "data_parallel" and period != 1:
        raise ValueError(
            f"period must be 1 with data_parallel, which sends after every step, got {period}"
        )
    if method != "streaming" and fragments != 1:
        raise ValueError(
            f"fragments must be 1 with {method}, which sends all layers at once, got {fragments}"
        )
    if fragments > layers:
        raise ValueError(f"fragments must be at most the {layers} layers, got {fragments}")


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = checked_number(name, value)
    if number == 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return number


def bandwidths_of(values: ArrayLike) -> Floats:
    """Bandwidths in bit/s, all above 0; they may be infinite."""
    found = np.asarray(values, np.float64)
    wrong = found[~(found > 0)]
    if wrong.size:
        raise ValueError(f"bandwidth_bit_s must be above 0, got {wrong.flat[0]:g}")
    return found
