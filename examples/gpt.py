"""A small GPT that learns Python's own source, on workers that talk rarely, in PyTorch.

    localsgd run -n 4 examples/gpt.py --method diloco                four workers
    localsgd run -n 4 examples/gpt.py --method all                   every method: table, picture
    localsgd run -n 4 --layout 2+2 examples/gpt.py --method hierarchical
    torchrun --nproc-per-node 4 examples/gpt.py --method diloco      on torch.distributed
    python examples/gpt.py                                           alone

The model (``gpt_model.py``) and the loop are those of one process. The lines that end in
``# localsgd`` make it a training of many: copy them, and a method, into a loop of your own. With
``--save FOLDER`` it goes on where it was stopped, in mid-period as well.

Tuned by runs of 150 to 900 steps: the synchronous peak rate (12e-3 and 6e-3 end 1.4 % apart after
900 steps, 3e-3 ends 8 % above) and DiLoCo's outer numbers. So short a training is in its steepest
part, and batches of 8 windows are noisy: who goes alone from the first step falls behind (local SGD
by 12 % at period 15), so the others begin together, for half of it.

Needs PyTorch: ``pip install 'localsgd[torch,examples]'``. Loss is in bits per character, held out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from chars import ALPHABET, HELD_OUT, LEARNT, read_modules
from gpt_curves import Curve, Watch, draw, table
from gpt_model import GPT, Shape
from rich.console import Console
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from localsgd import Communicator, ShardSampler, every
from localsgd.averagers import GroupSize
from localsgd.torch import (
    Checkpoints,
    DiLoCo,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    StreamingDiLoCo,
    adopt,
    average_parameters,
    world,
)

GLOBAL_BATCH, HELD_OUT_WINDOWS = 32, 1_024
SHAPE = Shape(len(ALPHABET))


@dataclass(frozen=True)
class Settings:
    """What is trained, and for how long; equal on all ranks.

    Attributes:
        steps: of each worker.
        until: the step after which to end, as one does that is stopped; None for the last.
        together: steps at first in which workers train as one; not by ``local``.
        period: steps from one average of all workers to the next.
        learning_rate: at its peak.
        seed: of the first values and the order of the data.
        moments: how often the held-out loss is looked at.
        save: where to save, and go on from; None for nowhere.
        save_every: steps from one checkpoint to the next.
        compiled: whether the model is compiled.
        bfloat16: whether products are taken in bfloat16, which not every CPU is fast with.
        shape: of the model.
    """

    steps: int = 600
    until: int | None = None
    together: int = 300
    period: int = 5
    learning_rate: float = 8e-3
    seed: int = 0
    moments: int = 15
    save: Path | None = None
    save_every: int = 100
    compiled: bool = False
    bfloat16: bool = False
    shape: Shape = SHAPE


Method = Callable[[nn.Module, Optimizer, Settings], PostLocalSGDOptimizer]


def synchronous(model: nn.Module, inner: Optimizer, of: Settings) -> PostLocalSGDOptimizer:
    """Gradients are averaged in every step, as DDP does: a warm-up that lasts to the end."""
    averager = PeriodicModelAverager(of.period, warmup_steps=of.steps)
    return PostLocalSGDOptimizer(inner, averager, gradients=GradientStage(model, averager))


def local(model: nn.Module, inner: Optimizer, of: Settings) -> PostLocalSGDOptimizer:
    """Parameters are averaged after every period, from the first step on."""
    return LocalSGD(inner, of.period)


def post_local(model: nn.Module, inner: Optimizer, of: Settings) -> PostLocalSGDOptimizer:
    """Gradients are averaged at first, then parameters after every period."""
    averager = PeriodicModelAverager(of.period, warmup_steps=of.together)
    return PostLocalSGDOptimizer(inner, averager, gradients=GradientStage(model, averager))


def hierarchical(model: nn.Module, inner: Optimizer, of: Settings) -> PostLocalSGDOptimizer:
    """As post-local, and in the local phase the workers of a host average five times as often."""
    levels: dict[int, GroupSize] = {max(1, of.period // 5): "host", of.period: "world"}
    averager = HierarchicalModelAverager(levels, warmup_steps=of.together)
    return PostLocalSGDOptimizer(inner, averager, gradients=GradientStage(model, averager))


def diloco(model: nn.Module, inner: Optimizer, of: Settings) -> PostLocalSGDOptimizer:
    """What workers move in a period is a gradient, for Nesterov's momentum."""
    return DiLoCo(inner, of.period, outer_lr=0.6, outer_momentum=0.7, synchronous_steps=of.together)


def streaming(model: nn.Module, inner: Optimizer, of: Settings) -> PostLocalSGDOptimizer:
    """DiLoCo of a quarter of the model at a time, which arrives while training goes on."""
    return StreamingDiLoCo(inner, of.period, 4, delay=2, synchronous_steps=of.together)


METHODS: dict[str, Method] = {
    "synchronous": synchronous,
    "local": local,
    "post-local": post_local,
    "hierarchical": hierarchical,
    "diloco": diloco,
    "streaming": streaming,
}


def windows_of(names: str, context: int) -> Tensor:
    """The source of these modules as windows of a context and a character, end to end."""
    text = torch.from_numpy(read_modules(names)).long()
    return text[: len(text) // (context + 1) * (context + 1)].view(-1, context + 1)


def rate(step: int, steps: int) -> float:
    """A factor: rises for a twentieth of training, then falls to a twentieth along a cosine."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.525 + 0.475 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def train(method: str, of: Settings, say: Callable[[str], None]) -> tuple[GPT, Curve]:
    """One model, equal on all workers at the end, and how its training went. Collective.

    Args:
        say: called with a line at every moment.
    """
    torch.manual_seed(of.seed)
    model = GPT(of.shape)
    comm = world()  # localsgd
    adopt(model)  # localsgd: equal on all ranks, in memory that the ranks of a host share
    if of.compiled:
        model.compile()
    inner = AdamW(model.groups(decay=0.1), lr=of.learning_rate, betas=(0.9, 0.95), fused=True)
    optimizer = METHODS[method](model, inner, of)  # localsgd
    scheduler = LambdaLR(optimizer, lambda step: rate(step, of.steps))
    learn = windows_of(LEARNT, of.shape.context)
    sampler = ShardSampler(  # localsgd
        len(learn), max(1, GLOBAL_BATCH // comm.size), seed=of.seed, comm=comm
    )
    saves = None
    if of.save is not None:
        parts = {"model": model, "training": optimizer, "rate": scheduler, "sampler": sampler}
        saves = Checkpoints(  # localsgd
            of.save, parts, when=every(of.save_every), preemption=every(of.save_every)
        )
        saves.load()

    average, held_out = GPT(of.shape), windows_of(HELD_OUT, of.shape.context)[:HELD_OUT_WINDOWS]
    curve, watch, until = Curve(), Watch(comm), of.steps if of.until is None else of.until
    while optimizer.averager.step < until:
        for batch in sampler:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=of.bfloat16):
                loss = model.loss(learn[batch])
            # type: torch does not annotate it
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # takes the local step, and averages when due
            scheduler.step()
            step = optimizer.averager.step
            if saves is not None:
                saves.after(step)  # localsgd
            if step % max(1, of.steps // of.moments) == 0:
                nbytes, seconds = watch.stop()
                take_average(average, model)  # localsgd
                say(curve.add(step, bits(average, held_out, comm), nbytes, seconds))
                watch.go_on()
            if step == until:
                break
    optimizer.flush()  # localsgd: all workers now hold one model
    if saves is not None:
        saves.close()
    curve.digest = digest(model, comm)
    return model, curve


def take_average(average: nn.Module, model: nn.Module) -> None:
    """Gives ``average`` the mean of all workers' parameters; ``model`` stays as it is.

    To evaluate or save in mid-period. Collective.
    """
    average.load_state_dict(model.state_dict())
    average_parameters(average.parameters(), None)


@torch.no_grad()
def bits(average: GPT, held_out: Tensor, comm: Communicator) -> float:
    """The held-out loss in bits per character: rank 0 computes it, all get it. Collective."""
    found = average.loss(held_out).item() / math.log(2) if comm.rank == 0 else 0.0
    return float(comm.collect(found)[0])


def digest(model: nn.Module, comm: Communicator) -> str:
    """Of all parameters. Collective.

    Raises:
        AssertionError: if the ranks' parameters differ in a bit.
    """
    found = hashlib.sha256()
    for param in model.parameters():
        found.update(param.detach().contiguous().numpy().tobytes())
    digests = comm.collect(found.hexdigest()[:16])
    if len(set(digests)) > 1:
        raise AssertionError(f"ranks must end with one model, got those of digests {digests}")
    return str(digests[0])


def run(methods: Sequence[str], of: Settings, picture: Path, model_path: Path | None) -> None:
    comm, console = world(), Console()

    def say(line: str) -> None:
        if comm.rank == 0:
            console.print(line, highlight=False)

    curves: dict[str, Curve] = {}
    for method in methods:
        say(f"{method}, {comm.size} workers on hosts {comm.topology}")
        model, curves[method] = train(method, of, say)
        say(f"ended with one model on all ranks, digest {curves[method].digest}\n")
    if comm.rank > 0:
        return
    if len(methods) > 1:
        title = f"A GPT on Python's own source, {comm.size} workers"
        console.print(table(title, curves))
        draw(picture, title, curves)
        console.print(f"picture: {picture}\n")
    if model_path is not None:
        model_path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), model_path)
    start = [ALPHABET.index(letter) for letter in "class Communicator:\n    def "]
    text = "".join(ALPHABET[number] for number in model.write(start, 300))
    console.print(f"written by the last model:\n\n{text}", markup=False, highlight=False)


def main() -> None:
    default = Settings()
    parser = argparse.ArgumentParser(description="Local SGD on a small GPT in PyTorch.")
    parser.add_argument("--method", choices=[*METHODS, "all"], default="diloco")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--until", type=int, help="end after this step, to go on later")
    parser.add_argument("--together", type=int, default=default.together)
    parser.add_argument("--period", type=int, default=default.period)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--moments", type=int, default=default.moments)
    parser.add_argument("--save", type=Path, help="a folder for checkpoints, of one method")
    parser.add_argument("--save-every", type=int, default=default.save_every)
    for name in ("context", "width", "layers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default.shape, name))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--model", type=Path, help="where the last model goes")
    parser.add_argument("--picture", type=Path, default=Path("out/gpt.png"))
    given = parser.parse_args()
    if given.method == "all" and given.save is not None:
        parser.error("--save must be of one --method, got all")
    torch.set_num_threads(1)  # the workers are the parallelism
    of = Settings(
        steps=given.steps,
        until=given.until,
        together=given.together,
        period=given.period,
        learning_rate=given.learning_rate,
        seed=given.seed,
        moments=given.moments,
        save=given.save,
        save_every=given.save_every,
        compiled=given.compile,
        bfloat16=given.bfloat16,
        shape=Shape(len(ALPHABET), given.context, given.width, layers=given.layers),
    )
    run(list(METHODS) if given.method == "all" else [given.method], of, given.picture, given.model)


if __name__ == "__main__":
    main()
