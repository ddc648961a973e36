"""Plans of fragments: every parameter once, in parts of nearly equal size or by layers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, solo
from localsgd.arrays import balanced, checked_plan, strided


def arena(**sizes: int) -> Arena:
    made = {name.replace("_", "."): np.zeros(size) for name, size in sizes.items()}
    return Arena(made, solo(), grad=False)


MODEL = arena(emb=8, b0_w=4, b0_b=1, b1_w=4, b1_b=1, b2_w=4, b2_b=1, b3_w=4, b3_b=1)


def test_the_largest_goes_first_into_the_smallest_fragment() -> None:
    """8 | 5, 5 | 4, 4 | 1: 8 + 4 and 5 + 5 are wrong, 8 | 5 | 5 + … by hand: 12, 11."""
    params = arena(a=5, b=8, c=4, d=5, e=1)
    # b (8) to 0; a (5) to 1; d (5) to 1 (5 < 8); c (4) to 0 (8 < 10); e (1) to 1 (10 < 12).
    assert balanced(params, 2) == [["b", "c"], ["a", "d", "e"]]


def test_equal_sizes_go_by_name_and_some_stand_apart() -> None:
    params = arena(d=2, c=2, b=2, a=2)
    assert balanced(params, 2) == [["c", "a"], ["d", "b"]]
    assert balanced(params, 1, apart=["c"]) == [["d", "b", "a"], ["c"]]


def test_strided_fragments_have_every_so_manieth_layer() -> None:
    assert strided(MODEL, 2) == [
        ["emb", "b1.w", "b1.b", "b3.w", "b3.b"],
        ["b0.w", "b0.b", "b2.w", "b2.b"],
    ]
    by_kind = strided(MODEL, 2, layer=lambda name: name[-1])
    assert by_kind[1] == [name for name in MODEL.names if name.endswith("w")]


TRANSFORMER = {
    "wte.weight": 50,
    **{
        f"blocks.{i}.{name}": size
        # In the order of strings, as some libraries sort them.
        for i in sorted(range(11), key=str)
        for name, size in (("attn.q.weight", 9), ("attn.q.bias", 3), ("mlp.weight", 12))
    },
    "norm.weight": 3,
    "head.weight": 40,
}


def layers_of(names: list[str]) -> list[str]:
    return list(dict.fromkeys(re.sub(r"^(blocks\.\d+).*", r"\1", name) for name in names))


def test_strided_fragments_go_by_the_number_of_the_layer() -> None:
    """Of 11 blocks of three tensors each, with the embedding and the head apart."""
    sizes = {name: np.zeros(size) for name, size in TRANSFORMER.items()}
    ends = ["wte.weight", "norm.weight", "head.weight"]
    *found, apart = strided(sizes, 3, apart=ends)
    assert apart == ends
    for p, names in enumerate(found):
        assert set(layers_of(names)) == {f"blocks.{i}" for i in range(p, 11, 3)}
        assert len(names) == 3 * len(layers_of(names))
    # What has no number is a layer where it comes.
    first, second = strided(sizes, 2)
    assert set(layers_of(first)) == {
        *("wte.weight", "norm.weight"),
        *(f"blocks.{i}" for i in range(1, 11, 2)),
    }
    assert set(layers_of(second)) == {*(f"blocks.{i}" for i in range(0, 11, 2)), "head.weight"}


def test_balanced_fragments_of_a_transformer() -> None:
    """Eleven tensors of 12, of 9 and of 3, and one more of 3: 267 in all, 89 to each of three."""
    sizes = {name: np.zeros(size) for name, size in TRANSFORMER.items()}
    *found, apart = balanced(sizes, 3, apart=["wte.weight", "head.weight"])
    assert apart == ["wte.weight", "head.weight"]
    sums = [sum(TRANSFORMER[name] for name in names) for names in found]
    assert sum(sums) == 267 and max(sums) - min(sums) <= 3
    assert sorted(name for names in [*found, apart] for name in names) == sorted(TRANSFORMER)
    # Written out: the largest first, ties by name, each into the smallest sum.
    filled, wanted = [0, 0, 0], [set[str](), set[str](), set[str]()]
    for size in (12, 9, 3):
        for name in sorted(n for n, s in TRANSFORMER.items() if s == size):
            index = filled.index(min(filled))
            wanted[index].add(name)
            filled[index] += size
    assert [set(names) for names in found] == wanted


def test_a_mapping_of_arrays_is_a_model_as_its_arena_is() -> None:
    arrays = {name: MODEL[name] for name in MODEL.names}
    assert balanced(arrays, 3) == balanced(MODEL, 3)
    assert strided(arrays, 3, apart=["emb"]) == strided(MODEL, 3, apart=["emb"])


def test_several_arenas_are_one_model() -> None:
    wide = Arena({"x": np.zeros(3, np.float32)}, solo(), grad=False)
    assert balanced([arena(a=3, b=1), wide], 2) == [["a", "b"], ["x"]]
    with pytest.raises(ValueError, match="must have different names, got 'x'"):
        balanced([wide, wide], 1)


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        (0, ValueError, "fragments must be at least 1, got 0"),
        (10, ValueError, "fragments must be at most the 9 parameters, got 10"),
        ([["emb"], []], ValueError, "every fragment must have a parameter"),
        ([["emb", "w"]], ValueError, r"got \['w'\]"),
        ([["emb"]], ValueError, r"in one fragment, got \['b0.w', "),
        ([list(MODEL.names), ["emb"]], ValueError, r"got \[\] in none, \['emb'\] in several"),
        ("emb", TypeError, "fragments must be a number or lists of names, got 'emb'"),
        (["emb"], TypeError, "fragments must be a number or lists of names"),
    ],
)
def test_plans_that_cannot_be_met_are_refused(plan: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        checked_plan(MODEL, plan)


def test_more_fragments_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="fragments must be at most the 5 layers, got 6"):
        strided(MODEL, 6)
    with pytest.raises(ValueError, match="fragments must be at most the 4 layers, got 5"):
        strided(MODEL, 5, apart=["emb"])
    for make in (balanced, strided):
        with pytest.raises(ValueError, match=r"got \['head'\]"):
            make(MODEL, 2, apart=["head"])
