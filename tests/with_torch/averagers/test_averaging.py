"""C9 to C16, C28, C30 and C31: the functions that average, in place, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging import averagers
from torch.distributed.algorithms.model_averaging import utils as theirs
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import MismatchError, run_threads
from torch_ranks import run_ranks


def parameter(*values: float, dtype: torch.dtype = torch.float32, grad: bool = True) -> Parameter:
    made = Parameter(torch.tensor(values, dtype=dtype), requires_grad=dtype.is_floating_point)
    if grad:
        made.grad = torch.zeros_like(made)
    return made


def test_groups_none_sub_and_foreign() -> None:
    """C9: None is everybody; ranks outside a group are left alone."""

    def body(rank: int) -> Any:
        pair = dist.new_group([0, 1])
        found = []
        for module, everybody in ((ours, None), (theirs, dist.group.WORLD)):
            for group in (everybody, pair):
                param = parameter(float(rank), 1.0)
                module.average_parameters(iter([param]), group)  # type: ignore[attr-defined]
                found.append(param.tolist())
        return found

    for rank, values in enumerate(run_ranks(3, body)):
        pair = [[0.5, 1.0], [0.5, 1.0], [2.0, 1.0]][rank]
        assert values == [[1.0, 1.0], pair, [1.0, 1.0], pair]


def test_the_low_level_function_has_no_filter_and_the_others_have() -> None:
    """C10: bias without a gradient stays 0 and 1 while the weight becomes 0.5."""

    def body(rank: int) -> Any:
        found = []
        for module in (ours, theirs):
            weight, bias = parameter(float(rank)), parameter(float(rank), grad=False)
            module.average_parameters_or_parameter_groups(  # type: ignore[attr-defined]
                [weight, bias], dist.group.WORLD
            )
            found.append((weight.item(), bias.item()))
            module.average_parameters(iter([bias]), dist.group.WORLD)  # type: ignore[attr-defined]
            found.append((weight.item(), bias.item()))
        return found

    for rank, values in enumerate(run_ranks(2, body)):
        assert values == [(0.5, rank), (0.5, 0.5)] * 2


def test_every_shape_of_params_is_taken() -> None:
    """C11: generator, list, groups and a mixture, with duplicates and order kept."""
    with_grad, without = parameter(1.0), parameter(2.0, grad=False)
    plain = torch.ones(2)
    plain.grad = torch.ones(2)
    frozen = parameter(3.0)
    frozen.requires_grad_(False)
    for params in (
        [with_grad, without, frozen, with_grad],
        [{"params": [with_grad, without]}, {"params": [plain], "lr": 0.1}],
        [with_grad, {"params": [plain, without]}],
    ):
        for given in (params, iter(params)):
            found = ours.get_params_to_average(given)  # type: ignore[arg-type]
            expected = theirs.get_params_to_average(iter(params))  # type: ignore[arg-type]
            assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


@pytest.mark.parametrize("module", [ours, theirs])
def test_other_elements_are_refused(module: Any) -> None:
    """C12, and the rest of G2."""
    with pytest.raises(NotImplementedError, match="Tensor"):
        module.get_params_to_average([torch.ones(2)])
    with pytest.raises(NotImplementedError, match="Tensor"):
        module.get_params_to_average(parameter(1.0, 2.0))
    with pytest.raises(KeyError):
        module.get_params_to_average([{"weights": []}])


def test_dtypes_are_kept() -> None:
    """C13: rule A5, with torch in the same processes."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

    def body(rank: int) -> Any:
        found = []
        for module in (ours, theirs):
            params = [parameter(float(rank), 2.0 * rank, dtype=dtype) for dtype in dtypes]
            # More digits than a float32 has.
            integers = (rank, 2 * rank + 1, 2**25 + 1)
            params.append(parameter(*integers, dtype=torch.int64, grad=False))
            module.average_parameters(iter(params), dist.group.WORLD)
            found.append([(str(param.dtype), param.tolist()) for param in params])
        return found

    for found in run_ranks(4, body):
        assert found[0] == found[1]
        assert found[0][0] == ("torch.float16", [1.5, 3.0])
        assert found[0][-1] == ("torch.int64", [1, 4, 2**25 + 1])


def test_complex_numbers_are_averaged() -> None:
    """A5."""

    def body(rank: int) -> Any:
        found = []
        for module in (ours, theirs):
            params = [Parameter(torch.tensor([rank + 1j, 2.0 - rank * 1j]))]
            module.average_parameters(iter(params), dist.group.WORLD)
            found.append(params[0].tolist())
        return found

    for found in run_ranks(3, body):
        assert found == [[1 + 1j, 2 - 1j]] * 2


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_ranks_end_bit_equal(size: int) -> None:
    """C14, and agreement with torch to float32 rounding."""

    def body(rank: int) -> Any:
        torch.manual_seed(rank)
        values = torch.randn(1001)
        mine, other = Parameter(values.clone()), Parameter(values.clone())
        ours.average_parameters([mine], None)
        theirs.average_parameters(iter([other]), dist.group.WORLD)
        return mine.detach().numpy(), other.detach().numpy()

    results = run_ranks(size, body)
    for mine, other in results:
        assert (mine == results[0][0]).all()
        assert abs(mine - other).max() < 1e-6


def test_a_nan_on_one_rank_reaches_all() -> None:
    """C15: as in torch, a mean with NaN is NaN; the other elements are not touched by it."""

    def body(rank: int) -> Any:
        param = parameter(float("nan") if rank == 1 else 1.0, float(rank))
        ours.average_parameters([param], None)
        return [str(value) for value in param.tolist()]

    assert run_ranks(2, body) == [["nan", "0.5"]] * 2


@pytest.mark.parametrize("size", [3, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identical_replicas_keep_their_bits(size: int, dtype: torch.dtype) -> None:
    """C30: torch changes 14 % of the elements at three ranks."""

    def body(comm: Any) -> bool:
        values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(dtype)
        param = Parameter(values.clone())
        ours.average_parameters([param], comm)
        return torch.equal(param, values)

    assert run_threads(size, body) == [True] * size


def test_a_small_float16_does_not_vanish() -> None:
    """A4: the smallest float16 is 0 after torch's mean of three equal ones."""

    def body(rank: int) -> Any:
        found = []
        for module in (ours, theirs):
            param = parameter(6e-8, dtype=torch.float16)
            module.average_parameters(iter([param]), dist.group.WORLD)
            found.append(param.item() > 0)
        return found

    assert run_ranks(3, body) == [[True, False]] * 3


def test_ranks_with_different_gradients_missing_never_mix() -> None:
    """C28: torch averages rank 0's a with the others' b, to 19 in both."""

    def body(comm: Any) -> Any:
        a = parameter(10.0, grad=comm.rank == 0)
        b = parameter(20.0 + comm.rank, grad=comm.rank != 0)
        params = [a, parameter(1.0, 2.0)] if comm.rank else [a]
        with pytest.raises(MismatchError):
            ours.average_parameters_or_parameter_groups(params, comm)
        ours.PeriodicModelAverager(4, 0, comm).average_parameters([a, b])
        return a.item(), b.item()

    assert run_threads(4, body) == [(10.0, 21.5)] * 4


def test_sets_of_one_size_are_told_apart_by_what_they_hold() -> None:
    """C28: the sizes are equal, the tensors are not."""

    def body(comm: Any) -> None:
        shapes = [(2, 3), (3, 2)]
        with pytest.raises(MismatchError, match=r"\[2, 3\] on rank 0; .*\[3, 2\] on rank 1"):
            ours.average_parameters([Parameter(torch.ones(shapes[comm.rank]))], comm)

    run_threads(2, body)


def test_an_average_without_gradients_still_averages_and_counts() -> None:
    """B4: torch raises where all gradients are None."""

    def body(comm: Any) -> Any:
        param = parameter(float(comm.rank), grad=False)
        averager = ours.PeriodicModelAverager(4, 0, comm)
        averager.average_parameters([param])
        return param.item(), averager.step

    assert run_threads(2, body) == [(0.5, 1)] * 2


def test_a_frozen_parameter_is_averaged_if_it_has_a_gradient() -> None:
    """G3: by the averagers too, in torch and here; one without is left alone."""

    def body(rank: int) -> Any:
        found = []
        for kind in (ours.PeriodicModelAverager, averagers.PeriodicModelAverager):
            params = [parameter(float(rank), grad=grad) for grad in (True, True, False)]
            for frozen in params[1:]:
                frozen.requires_grad_(False)
            kind(4).average_parameters(iter(params))
            found.append([param.item() for param in params])
        return found

    for rank, found in enumerate(run_ranks(3, body)):
        assert found == [[1.0, 1.0, rank]] * 2


def test_nothing_to_average_is_an_error() -> None:
    """A11."""

    def body(rank: int) -> None:
        for module in (ours, theirs):
            with pytest.raises(ValueError, match="non-empty|at least one"):
                module.average_parameters(iter([]), dist.group.WORLD)
            integers = parameter(1, dtype=torch.int64, grad=False)
            with pytest.raises(RuntimeError):
                module.average_parameters(iter([integers]), dist.group.WORLD)

    run_ranks(2, body)


def test_plain_tensors_are_averaged_where_they_lie() -> None:
    """Views of one tensor, as of a bucket, see their means; torch re-points them."""

    def body(comm: Any) -> Any:
        bucket = torch.full((6,), float(comm.rank))
        ours.average_parameters([bucket[:2], bucket[2:4].view(1, 2), bucket[5:]], comm)
        return bucket.tolist()

    assert run_threads(2, body) == [[0.5, 0.5, 0.5, 0.5, rank, 0.5] for rank in range(2)]
