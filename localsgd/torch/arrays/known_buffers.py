"""The rules of buffers that torch's own modules have, and other modules that are known by shape.

Their names say what they are: statistics of a normalisation, vectors that belong to a weight,
ranges that an observer of quantisation has seen, masks. What a round must not break stands here
once for every module; what is not found here has the rule of ``localsgd.arrays.rules`` for its
dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from localsgd.arrays import Derived, Rule, Variance, WeightedMean
from localsgd.comm.contract import Array
from localsgd.torch.arrays.places import on_host

# Of modules whose class, or a base of it, has this name.
_BY_CLASS: Mapping[str, Mapping[str, Rule]] = {
    "FakeQuantizeBase": {"fake_quant_enabled": "equal", "observer_enabled": "equal"},
    # A histogram and its range belong together, and two of them have no mean.
    "HistogramObserver": {
        "histogram": "keep",
        "min_val": "keep",
        "max_val": "keep",
        "eps": "equal",
    },
    "UniformQuantizationObserverBase": {"min_val": "min", "max_val": "max", "eps": "equal"},
    "FixedQParamsObserver": {"scale": "equal", "zero_point": "equal"},
    "_Orthogonal": {"base": "equal"},
    "_WeightedLoss": {"weight": "equal"},
    "BCEWithLogitsLoss": {"weight": "equal", "pos_weight": "equal"},
    "FrozenBatchNorm2d": dict.fromkeys(("weight", "bias", "running_mean", "running_var"), "equal"),
}


def known_rules(model: nn.Module) -> dict[str, Rule]:
    """The rule, by full name, of every buffer whose meaning is known."""
    names = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    found: dict[str, Rule] = {}
    for prefix, module in model.named_modules():
        path = f"{prefix}." if prefix else ""
        for key, rule in _rules_of(module, path):
            if path + key in names:
                found.setdefault(path + key, rule)
    return found


def _rules_of(module: nn.Module, path: str) -> Iterator[tuple[str, Rule]]:
    buffers = module._buffers
    for kind in type(module).__mro__:
        yield from _BY_CLASS.get(kind.__name__, {}).items()
    if {"running_mean", "running_var"} <= set(buffers):
        yield "running_mean", "mean"
        yield "running_var", Variance(mean=f"{path}running_mean")
    if {"embed", "embed_avg", "cluster_size"} <= set(buffers):
        # The codebook of a quantiser: sums of what fell to each code, over how many they were.
        yield "embed_avg", "mean"
        yield "cluster_size", "mean"
        yield "embed", WeightedMean(by=f"{path}cluster_size")
        yield "initted", "max"
        yield "inited", "max"
    for key in buffers:
        if key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in module._parameters:
            yield key, "equal"  # of torch.nn.utils.prune
    yield from _quantisation(module, path)
    yield from _spectral_norms(module, path)


def _quantisation(module: nn.Module, path: str) -> Iterator[tuple[str, Rule]]:
    """Scale and zero point of a fake quantisation follow from the range that was seen."""
    if not any(kind.__name__ == "FakeQuantizeBase" for kind in type(module).__mro__):
        return
    if not hasattr(module, "activation_post_process"):
        return
    mine = ref(module)

    def parameters(buffers: Mapping[str, Array]) -> tuple[Tensor, Tensor] | None:
        owner = mine()
        assert owner is not None
        observer: Any = copy.deepcopy(owner.activation_post_process)
        observer.cpu()
        for key in ("min_val", "max_val"):
            name = f"{path}activation_post_process.{key}"
            if name in buffers:
                setattr(observer, key, torch.from_numpy(buffers[name].copy()))
        seen = getattr(observer, "min_val", torch.zeros(1))
        if not seen.numel() or bool((seen > getattr(observer, "max_val", seen)).any()):
            return None  # nothing has been seen yet
        scale, zero_point = observer.calculate_qparams()
        return scale, zero_point

    def one_of(index: int, name: str) -> Callable[[Mapping[str, Array]], Array]:
        def compute(buffers: Mapping[str, Array]) -> Array:
            found = parameters(buffers)
            if found is None:
                return buffers[name]
            array: Array = found[index].reshape(buffers[name].shape).numpy()
            return array.astype(buffers[name].dtype)

        return compute

    yield "scale", Derived(one_of(0, f"{path}scale"))
    yield "zero_point", Derived(one_of(1, f"{path}zero_point"))


def _spectral_norms(module: nn.Module, path: str) -> Iterator[tuple[str, Rule]]:
    """The singular vectors of weights that are divided by their largest singular value."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            u, v = f"{hook.name}_u", f"{hook.name}_v"
            weight = _parameter(module, f"{hook.name}_orig")
            yield from _singular_vectors(path, u, v, weight, hook.dim, hook.eps)
    if isinstance(module, ParametrizationList):
        for index, member in enumerate(cast(Iterable[Any], module)):
            if type(member).__name__ == "_SpectralNorm" and "_u" in member._buffers:
                u, v = f"{index}._u", f"{index}._v"
                weight = _parametrized(module, index)
                yield from _singular_vectors(path, u, v, weight, member.dim, member.eps)


def _singular_vectors(
    path: str, u: str, v: str, weight: Callable[[], Tensor], dim: int, eps: float
) -> Iterator[tuple[str, Rule]]:
    def matrix() -> Tensor:
        return weight().movedim(dim, 0).flatten(1)

    def left(buffers: Mapping[str, Array]) -> Array:
        return leading_left_vector(matrix(), torch.from_numpy(buffers[path + u].copy())).numpy()

    def right(buffers: Mapping[str, Array]) -> Array:
        product = matrix().mH @ torch.from_numpy(buffers[path + u].copy())
        return functional.normalize(product, dim=0, eps=eps).numpy()

    yield u, Derived(left)
    yield v, Derived(right)


def leading_left_vector(
    matrix: Tensor, start: Tensor, *, rise: float = 1e-6, limit: int = 1_000
) -> Tensor:
    """The left singular vector of the largest singular value, by iteration of the power method.

    Args:
        matrix: shape ``(n, m)``.
        start: shape ``(n,)``, not at a right angle to it.
        rise: ends once an iteration raises the singular value by less than this part.
        limit: how many iterations at the most.
    """
    vector, largest = start, 0.0
    for _ in range(limit):
        product = matrix @ functional.normalize(matrix.mH @ vector, dim=0)
        found = float(torch.linalg.vector_norm(product))
        if not found > 0.0:
            break
        vector = product / found
        if found <= largest * (1 + rise):
            break
        largest = found
    return vector


def _parameter(module: nn.Module, key: str) -> Callable[[], Tensor]:
    mine = ref(module)

    def weight() -> Tensor:
        owner = mine()
        assert owner is not None
        return on_host(getattr(owner, key))

    return weight


def _parametrized(chain: ParametrizationList, index: int) -> Callable[[], Tensor]:
    """The weight as parametrisation number ``index`` of a chain finds it."""
    mine = ref(chain)

    def weight() -> Tensor:
        owner: Any = mine()
        assert owner is not None
        keys = ["original"] if owner.is_tensor else [f"original{i}" for i in range(owner.ntensors)]
        values = [on_host(getattr(owner, key)) for key in keys]
        if index == 0:
            return values[0]
        device = getattr(owner, keys[0]).device
        value = owner[0](*(value.to(device) for value in values))
        for earlier in list(owner)[1:index]:
            value = earlier(value)
        found: Tensor = value.detach().cpu()
        return found

    return weight
