"""A small transformer that learns Python's source, in PyTorch, with post-local SGD.

The same text as ``chars.py``. In the first tenth of training gradients are averaged in every step;
then every worker trains alone, and all average parameters every so many steps. Every period is a
training of its own, from the same start on the same samples; the first averages gradients to the
end.

    python examples/chars_torch.py                                      alone
    localsgd run -n 4 examples/chars_torch.py                           on MPI
    torchrun --nproc-per-node 4 examples/chars_torch.py                 on torch.distributed

Needs PyTorch: ``pip install 'localsgd[torch,examples]'``. Loss is in bits per character, held out.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from chars import ALPHABET, HELD_OUT, LEARNT, read_modules
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from localsgd import Communicator, ShardSampler
from localsgd.torch import GradientStage, PeriodicModelAverager, PostLocalSGDOptimizer, world

CONTEXT, WIDTH, HEADS, LAYERS = 48, 64, 4, 2
GLOBAL_BATCH, HELD_OUT_WINDOWS = 32, 512


class Transformer(nn.Module):
    """Predicts the next character at every place of a window."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, windows: Tensor) -> Tensor:
        """Scores of shape ``(n, length, letters)`` for windows ``(n, length)`` of numbers."""
        length = windows.shape[1]
        mask = self.mask[:length, :length]
        hidden = self.letters(windows) + self.places[:length]
        scores: Tensor = (
            self.norm(self.layers(hidden, mask, is_causal=True)) @ self.letters.weight.T
        )
        return scores

    def loss(self, windows: Tensor) -> Tensor:
        """The mean cross-entropy, in nats, of every character but the first of each window."""
        scores = self(windows[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())


def windows_of(names: str) -> Tensor:
    """The source of these modules as windows of a context and a character, end to end."""
    text = torch.from_numpy(read_modules(names)).long()
    return text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)


def learning_rate(step: int, steps: int) -> float:
    """A factor: rises for a twentieth of training, then falls to a tenth along a cosine."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.55 + 0.45 * math.cos(math.pi * (step - rise) / (steps - rise))


def train(comm: Communicator, period: int, warmup_steps: int, steps: int) -> Transformer:
    """One model, equal on all workers at the end."""
    torch.manual_seed(0)
    model = Transformer()
    averager = PeriodicModelAverager(period, warmup_steps)
    optimizer = PostLocalSGDOptimizer(
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        averager,
        gradients=GradientStage(model, averager),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, steps)
    )
    learn = windows_of(LEARNT)
    sampler = ShardSampler(len(learn), GLOBAL_BATCH // comm.size, seed=0, comm=comm)
    while averager.step < steps:
        for indices in sampler:
            optimizer.zero_grad()
            model.loss(learn[indices]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if averager.step == steps:
                break
    optimizer.flush()
    return model


@torch.no_grad()
def bits_per_character(model: Transformer, comm: Communicator) -> float:
    """The held-out loss; every worker computes its share. Collective."""
    windows = windows_of(HELD_OUT)[:HELD_OUT_WINDOWS]
    mine = windows[comm.rank :: comm.size]
    total = sum(comm.collect(model.loss(mine).item() * len(mine)))
    return total / len(windows) / math.log(2)


@torch.no_grad()
def written(model: Transformer, count: int) -> str:
    """Text that the model writes, from a start."""
    random = torch.Generator().manual_seed(0)
    text = "class Communicator:\n    def "
    for _ in range(count):
        window = torch.tensor([[ALPHABET.index(letter) for letter in text[-CONTEXT:]]])
        likely = torch.softmax(1.5 * model(window)[0, -1], 0)
        text += ALPHABET[int(torch.multinomial(likely, 1, generator=random))]
    return text


def moved(comm: Communicator) -> float:
    """Megabytes that all workers together have moved so far. Collective."""
    traffic = comm.traffic
    mine = traffic.host_read + traffic.host_written + traffic.sent + traffic.received
    return sum(comm.collect(mine)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Post-local SGD on a transformer in PyTorch.")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--periods", type=int, nargs="+", default=[4, 16])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = world()
    table = Table(title=f"{comm.size} workers on hosts {comm.topology}", box=box.SIMPLE)
    for heading in ("averaging", "bits per character", "moved", "took"):
        table.add_column(heading, justify="right")
    steps: int = arguments.steps
    ways = {"gradients": (steps, steps)}
    ways |= {f"period {period}": (period, steps // 10) for period in arguments.periods}
    for name, (period, warmup_steps) in ways.items():
        before, begin = moved(comm), time.perf_counter()
        model = train(comm, period, warmup_steps, steps)
        seconds = time.perf_counter() - begin
        megabytes = moved(comm) - before
        loss = bits_per_character(model, comm)
        table.add_row(name, f"{loss:.3f}", f"{megabytes:,.0f} MB", f"{seconds:.1f} s")
    if comm.rank == 0:
        console = Console()
        console.print(table)
        console.print(f"written by the last:\n\n{written(model, 300)}", markup=False)


if __name__ == "__main__":
    main()
