"""Places: what may happen to a tensor that has one, and a round finds it all the same."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging import utils as theirs
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo
from torch_ranks import run_ranks

RARELY = 1_000_000


def send(tensor: Tensor) -> None:
    """What a queue of torch.multiprocessing does to a tensor: its storage moves."""
    ForkingPickler.dumps(tensor.detach())


MOVES: list[Callable[[Tensor], object]] = [Tensor.share_memory_, send]


@pytest.mark.parametrize("move", MOVES)
def test_parameters_and_buffers_that_went_to_another_process_are_averaged_still(move: Any) -> None:
    """Workers write 1 and 3 after the move: the mean is 2."""

    def body(comm: Any) -> Any:
        model = nn.BatchNorm1d(2)
        adopted = ours.adopt(model, comm)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            ours.PeriodicModelAverager(RARELY, 0, comm),
            buffers=adopted.buffers,
        )
        optimizer.step()
        tensors = [model.weight, model.running_mean]
        for tensor in tensors:
            move(tensor)
            tensor.detach().fill_(1.0 + 2 * comm.rank)
        optimizer.flush()
        return [tensor.tolist() for tensor in tensors]

    assert run_threads(2, body) == [[[2.0, 2.0]] * 2] * 2


@pytest.mark.parametrize("move", MOVES)
def test_gradients_that_went_to_another_process_are_averaged_still(move: Any) -> None:
    """The gradient of every pass is 1 and 2, also where the memory of the last one moved."""

    def body(comm: Any) -> Any:
        model = nn.Linear(2, 1, bias=False)
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        ours.GradientStage(model, averager)
        found = []
        for _ in range(3):
            model.zero_grad()
            model(torch.full((1, 2), 1.0 + comm.rank)).sum().backward()
            assert model.weight.grad is not None
            found.append(model.weight.grad.tolist())
            move(model.weight.grad)
        return found

    assert run_threads(2, body) == [[[[1.5, 1.5]]] * 3] * 2


def test_a_view_of_numpys_shows_every_mean() -> None:
    """A9: torch detaches it at the first average."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.full((2,), float(comm.rank)))
        averager = ours.PeriodicModelAverager(RARELY, 0, comm)
        averager.average_parameters([param])
        view = param.detach().numpy()
        param.detach().fill_(4.0 * comm.rank)
        averager.flush([param])
        return view.tolist()

    assert run_threads(2, body) == [[2.0, 2.0]] * 2


def test_a_memory_format_that_came_later_is_kept() -> None:
    """The values as well: a mean of one is the same."""
    model = nn.Conv2d(3, 4, 3)
    averager = ours.PeriodicModelAverager(RARELY, 0, solo())
    averager.average_parameters(model.parameters())
    values = model.weight.tolist()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(2):
        averager.flush(model.parameters())
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
        assert model.weight.tolist() == values


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (4, 3, 1, 1), (1, 3, 3, 3), (1, 1, 1, 1)])
def test_dimensions_of_one_element_do_not_move_a_parameter(shape: tuple[int, ...]) -> None:
    """Such a tensor is in several memory formats at once."""
    param = Parameter(torch.randn(shape).to(memory_format=torch.channels_last))
    averager = ours.PeriodicModelAverager(RARELY, 0, solo())
    averager.average_parameters([param])
    home = param.data_ptr()
    param.data = param.detach().clone()
    averager.flush([param])
    assert param.data_ptr() == home


@pytest.mark.parametrize("size", [2, 3, 4])
def test_what_a_group_has_averaged_everybody_may_average(size: int) -> None:
    """A hierarchy by hand, with torch's functions in the same processes: the first two, then all.

    Ranks hold r: the first two 0.5, then all the mean of 0.5, 0.5, 2, ….
    """

    def body(rank: int) -> Any:
        pair = dist.new_group([0, 1])
        found = []
        for module in (ours, theirs):
            params = [Parameter(torch.full((3,), float(rank))) for _ in range(2)]
            for group in (pair, dist.group.WORLD, pair, dist.group.WORLD):
                module.average_parameters(iter(params), group)  # type: ignore[attr-defined]
            found.append([param.tolist() for param in params])
        return found

    mean = sum(range(size)) / size
    assert run_ranks(size, body) == [[[[mean] * 3] * 2] * 2] * size


def test_groups_whose_parameters_have_the_same_names_are_averaged_whole() -> None:
    """Two modules by their own names; a parameter by its number and one that is called so."""

    def body(comm: Any) -> Any:
        first, second = (nn.Linear(1, 1) for _ in range(2))
        single = Parameter(torch.zeros(1))
        params = [*first.parameters(), *second.parameters(), single]
        for param in params:
            param.detach().fill_(float(comm.rank))
        groups: Any = [
            single,
            {"params": list(first.parameters()), "param_names": ["0", "bias"]},
            {"params": list(second.parameters()), "param_names": ["0", "bias"]},
        ]
        ours.PeriodicModelAverager(2, 0, comm).average_parameters(groups)
        return [param.item() for param in params]

    assert run_threads(3, body) == [[1.0] * 5] * 3


def test_parameters_without_elements_are_averaged_with_the_others() -> None:
    """With their state; 0 and 2 become 1."""

    def body(comm: Any) -> Any:
        shapes = [(0, 3), (2,), (0,)]
        params = [Parameter(torch.full(shape, 2.0 * comm.rank)) for shape in shapes]
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.Adam(params), ours.PeriodicModelAverager(2, 0, comm), state="mean"
        )
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        return [param.tolist() for param in params], [tuple(param.shape) for param in params]

    assert run_threads(2, body) == [([[], [1.0, 1.0], []], [(0, 3), (2,), (0,)])] * 2


def test_parameters_and_optimizer_state_keep_their_identity_and_address() -> None:
    """C16 and C31: after the first average nothing moves."""

    def body(comm: Any) -> Any:
        model = nn.Linear(3, 2)
        before = list(model.parameters())
        inner = torch.optim.Adam(model.parameters())
        optimizer = ours.PostLocalSGDOptimizer(inner, ours.PeriodicModelAverager(2, 0, comm))
        addresses = set()
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            addresses.add(tuple(param.data_ptr() for param in model.parameters()))
        assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
        assert set(inner.state) == set(before)
        return len(addresses)

    assert run_threads(2, body) == [1, 1]


def test_memory_formats_and_tied_weights_are_kept() -> None:
    """A9: torch loses channels_last, and unties parameters that share their data."""

    def body(comm: Any) -> Any:
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        one, other = nn.Linear(3, 3), nn.Linear(3, 3)
        other.weight.data = one.weight.data
        model = nn.ModuleList([conv, one, other])
        expected = comm.collect([param.tolist() for param in model.parameters()])
        ours.average_parameters(model.parameters(), comm)
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert other.weight.data_ptr() == one.weight.data_ptr()
        for index, param in enumerate(model.parameters()):
            mean = sum(torch.tensor(values[index], dtype=torch.float64) for values in expected) / 3
            torch.testing.assert_close(param.double(), mean, rtol=1e-6, atol=1e-7)
        return conv.weight.stride()

    assert run_threads(3, body) == [(27, 1, 9, 3)] * 3


def test_layouts_of_ranks_must_agree() -> None:
    def body(comm: Any) -> None:
        formats = [torch.contiguous_format, torch.channels_last]
        conv = nn.Conv2d(3, 4, 3).to(memory_format=formats[comm.rank])
        with pytest.raises(MismatchError, match=r"in order \(0, 2, 3, 1\) on rank 1"):
            ours.average_parameters(conv.parameters(), comm)

    run_threads(2, body)


def test_one_parameter_is_saved_without_the_others() -> None:
    """A9: torch writes the whole flat storage with each."""
    params = [Parameter(torch.randn(1000)) for _ in range(2)]
    ours.average_parameters(params, solo())
    file = io.BytesIO()
    torch.save(params[0], file)
    assert len(file.getvalue()) < 6000
    file.seek(0)
    assert torch.equal(torch.load(file), params[0])


def test_a_deep_copy_is_on_its_own() -> None:
    model = nn.Linear(3, 2)
    ours.average_parameters(model.parameters(), solo())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.weight.fill_(7.0)
    assert not torch.equal(copied.weight, model.weight)
    model.load_state_dict(copied.state_dict())
    assert torch.equal(copied.weight, model.weight)


def test_a_parameter_that_was_moved_away_comes_back() -> None:
    """A library that re-points ``.data`` costs one copy and breaks nothing."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.full((1,), float(comm.rank)))
        averager = ours.PeriodicModelAverager(1_000_000, 0, comm)
        averager.average_parameters([param])
        home = param.data_ptr()
        param.data = torch.tensor([4.0 + comm.rank])
        averager.flush([param])
        return param.item(), param.data_ptr() == home

    assert run_threads(2, body) == [(4.5, True)] * 2


def test_a_part_of_the_placed_parameters_is_averaged_alone() -> None:
    """Two optimizers on one model: each averages its own."""

    def body(comm: Any) -> Any:
        params = [Parameter(torch.full((1,), float(comm.rank))) for _ in range(5)]
        ours.average_parameters(params, comm)
        for param in params:
            param.data.fill_(float(comm.rank))
        ours.PeriodicModelAverager(2, 0, comm).average_parameters([params[0], params[1], params[3]])
        return [param.item() for param in params]

    for rank, values in enumerate(run_threads(2, body)):
        assert values == [0.5, 0.5, rank, 0.5, rank]


def test_parameters_that_are_tied_later_stay_tied() -> None:
    """A head that becomes its embedding after a first average: both are the mean of 1 and 3."""

    def body(comm: Any) -> Any:
        embedding, head = (Parameter(torch.zeros(2)) for _ in range(2))
        averager = ours.PeriodicModelAverager(RARELY, 0, comm)
        averager.average_parameters([embedding, head])
        head.data = embedding.data
        with torch.no_grad():
            embedding.fill_(1.0 + 2.0 * comm.rank)
        averager.flush([embedding, head])
        return embedding.tolist(), head.data_ptr() == embedding.data_ptr()

    assert run_threads(2, body) == [([2.0, 2.0], True)] * 2
