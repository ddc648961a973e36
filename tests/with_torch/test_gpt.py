"""The example of a GPT: its model, its methods on ranks, and the program as it is started."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gpt
import pytest
import torch
from gpt_model import GPT, Shape

from localsgd.torch import adopt, world
from torch_ranks import run_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt.py"
TINY = gpt.Settings(
    steps=12,
    together=3,
    period=4,
    moments=2,
    save_every=5,
    shape=Shape(97, context=12, width=8, heads=2),
)
SMALL = shlex.split("--context 12 --width 8 --layers 1 --moments 1 --together 2")
MPI = ["-m", "localsgd.cli", "run", "-n", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@contextmanager
def on_hosts(hosts: str) -> Iterator[None]:
    """Ranks count as on these hosts where they ask for the world first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALSGD_HOSTS", hosts)
        yield


def quiet(line: str) -> None:
    """Nobody reads it."""


def test_a_letter_is_predicted_from_those_before_it_alone() -> None:
    torch.manual_seed(0)
    model, window = GPT(TINY.shape), torch.randint(97, (1, 12))
    scores = model(window)
    window[0, 7] = (window[0, 7] + 1) % 97
    changed = (model(window) != scores).any(dim=2)[0].tolist()
    assert changed == [False] * 7 + [True] * 5


def test_only_matrices_decay_and_every_parameter_is_trained() -> None:
    """Embeddings of letters and places, and of 2 layers 4 matrices each; 5 normalisations."""
    model = GPT(TINY.shape)
    decaying, others = model.groups(decay=0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert (len(decaying["params"]), len(others["params"])) == (10, 5)
    assert len(list(model.parameters())) == 15


def test_the_rate_rises_and_falls_to_a_twentieth() -> None:
    """Of 100 steps 5 rise; halfway down the cosine it is 0.525."""
    factors = [gpt.rate(step, 100) for step in range(100)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert gpt.rate(5 + 95 // 2, 100) == pytest.approx(0.525, abs=0.01)
    assert gpt.rate(100, 100) == pytest.approx(0.05)
    assert factors[5:] == sorted(factors[5:], reverse=True)


@pytest.mark.parametrize("size", [2, 3])
def test_the_average_is_of_all_workers_and_leaves_them_where_they_are(size: int) -> None:
    """Values r + 1 of ranks 0 … n-1: their mean is (n + 1) / 2."""

    def body(rank: int) -> list[list[float]]:
        model, average = GPT(TINY.shape), GPT(TINY.shape)
        adopt(model)
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(rank + 1.0)
        gpt.take_average(average, model)
        return [held.norm.weight.unique().tolist() for held in (model, average)]

    for rank, (own, mean) in enumerate(run_ranks(size, body)):
        assert own == [rank + 1.0]
        assert mean == [(size + 1) / 2]


@pytest.mark.long
@pytest.mark.parametrize("hosts", ["1+1", "2+1"])
@pytest.mark.parametrize("method", gpt.METHODS)
def test_ranks_end_with_one_model_and_resuming_is_never_having_stopped(
    method: str, hosts: str
) -> None:
    """Stopped at step 7; what was saved last is of step 5, in mid-period."""

    def body(rank: int) -> tuple[list[int], list[str], list[float]]:
        with on_hosts(hosts), tempfile.TemporaryDirectory() as mine:
            comm = world()
            assert str(comm.topology) == hosts
            folder = Path(comm.collect(mine)[0])
            whole = gpt.train(method, TINY, quiet)[1]
            saving = replace(TINY, save=folder)
            stopped = gpt.train(method, replace(saving, until=7), quiet)[1]
            resumed = gpt.train(method, saving, quiet)[1]
            comm.collect(None)
        digests = [curve.digest for curve in (whole, resumed, stopped)]
        return resumed.steps, digests, [*whole.bits, *stopped.bits, *resumed.bits]

    found = run_ranks(sum(map(int, hosts.split("+"))), body)
    steps, (whole, resumed, stopped), bits = found[0]
    assert found == [found[0]] * len(found)
    assert steps == [6, 12]
    assert whole == resumed != stopped
    at_6, at_12, stopped_at_6, again_at_6, again_at_12 = bits
    assert (stopped_at_6, again_at_6, again_at_12) == (at_6, at_6, at_12)


@pytest.mark.parametrize(("hosts", "times"), [("2", 2), ("1+1", 4)])
def test_bytes_are_those_of_the_rounds_alone(hosts: str, times: int) -> None:
    """Local SGD has 3 rounds in 12 steps, DiLoCo 3 at first and then 2; looks count none.

    On one host each of two reads the other's; between two each sends and receives it once.
    """

    def body(rank: int, method: str) -> tuple[int, int]:
        with on_hosts(hosts):
            model, curve = gpt.train(method, TINY, quiet)
        return curve.nbytes[-1], sum(4 * param.numel() for param in model.parameters())

    for method, rounds in {"local": 3, "diloco": 5}.items():
        moved, nbytes = run_ranks(2, body, method)[0]
        assert moved == rounds * times * nbytes


def started(*words: str, cwd: Path) -> str:
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=200, check=False, cwd=cwd
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.long
def test_all_methods_make_a_table_and_a_picture(tmp_path: Path) -> None:
    words = ["--method", "all", "--steps", "4", "--period", "4", *SMALL]
    output = started(str(EXAMPLE), *words, cwd=tmp_path)
    rows = [line.split()[0] for line in output.splitlines() if line.rstrip().endswith(" s")]
    assert [row for row in rows if row in gpt.METHODS] == list(gpt.METHODS)
    assert (tmp_path / "out" / "gpt.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_mpi_and_torchrun_end_with_the_same_bits_and_save_what_is_read(tmp_path: Path) -> None:
    words = [str(EXAMPLE), "--steps", "5", "--period", "3", *SMALL, "--model", "gpt.pt"]
    digests, saved = [], []
    for name, launch in {"mpi": MPI, "torchrun": TORCHRUN}.items():
        folder = tmp_path / name
        folder.mkdir()
        lines = started(*launch, *words, cwd=folder).splitlines()
        digests += [line.split()[-1] for line in lines if "digest" in line]
        saved.append(torch.load(folder / "gpt.pt", weights_only=True))
    assert len(digests) == 2 and digests[0] == digests[1]
    GPT(Shape(97, context=12, width=8, layers=1)).load_state_dict(saved[0])
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
