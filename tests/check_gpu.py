"""What a GPU adds to the tests of the adapter, in under four minutes.

    python tests/check_gpu.py

Two ranks share the first GPU over MPI and over gloo; where there are two GPUs they have one each
over NCCL, too. Prints a table with the card's name and the figures. Ends with 0 if all that must
hold does, with 1 if something does not, and with 77, as test programs that were skipped do, if
there is no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

import localsgd.torch as ours
from localsgd import Communicator
from localsgd.torch.arrays import pin
from localsgd.torch.comm import carried

NO_GPU = 77
# Four jobs, of which each has less than a minute.
LIMIT_S = 55
RANKS = 2
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RARELY = 1_000_000


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was checked or measured.
        found: in words.
        good: whether what must hold does; True for what is only measured.
    """

    what: str
    found: str
    good: bool = True


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        elements: of the buffers that are averaged and copied.
        width: of the layers of the model that is trained, and of the matrices that are multiplied.
        repeats: of what is timed.
    """

    elements: int
    width: int
    repeats: int


LARGE, SMALL = Sizes(1 << 26, 2048, 9), Sizes(5003, 32, 2)


def synchronize(device: torch.device) -> None:
    """Returns once a device has done all that it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of a piece of work, after one that is not timed."""
    taken = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = perf_counter()
        work()
        synchronize(device)
        taken.append(perf_counter() - start)
    return median(taken[1:])


def bits(tensor: Tensor) -> bytes:
    """A tensor's memory."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def values(rank: int, dtype: torch.dtype, count: int) -> Tensor:
    """Close to those of other ranks; some far from them, some zeros of both signs, some tiny."""
    common, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + rank)
    found = torch.randn(count, generator=common)
    found += 1e-3 * torch.randn(count, generator=own)
    found[::5] *= 1.0 + rank
    found[2::11] = -0.0 if rank % 2 else 0.0
    wide = found.to(torch.float64)
    wide[1::7] *= torch.finfo(dtype).tiny
    return wide.to(dtype)


def averages(comm: Communicator, device: torch.device, sizes: Sizes) -> list[Row]:
    """Averages of parameters on a device against those of parameters on the CPU, to the bit."""
    rows = []
    for samples in (None, 3 + 4 * comm.rank):
        for dtype in DTYPES:
            given = values(comm.rank, dtype, min(sizes.elements, 1 << 22) + 3)
            found = []
            for where in (torch.device("cpu"), device):
                param = Parameter(given.clone().to(where))
                averager = ours.PeriodicModelAverager(RARELY, 0, comm)
                if samples is not None:
                    averager.record_samples(samples)
                averager.average_parameters([param])
                found.append(bits(param))
            equal = all(comm.collect(found[0] == found[1] and found[0] != bits(given)))
            name = str(dtype).removeprefix("torch.")
            weighed = "" if samples is None else ", with weights"
            words = "the bits of the CPU's" if equal else "other bits than the CPU's"
            rows.append(Row(f"average of {name}{weighed}", words, equal))
    return rows


def route(comm: Communicator, device: torch.device, sizes: Sizes) -> list[Row]:
    """How long an average of a large buffer takes, and which way it goes."""
    param = Parameter(torch.ones(sizes.elements, device=device))
    averager = ours.PeriodicModelAverager(RARELY, 0, comm)
    averager.place([param])
    before = comm.traffic.host_read
    taken = seconds(lambda: averager.flush([param]), device, sizes.repeats)
    there = comm.traffic.host_read == before
    way = "on the device" if there else "on the host"
    nbytes = param.numel() * param.element_size()
    good = there == (device.type in carried(comm))
    return [Row(f"average of {nbytes / 1e6:,.0f} MB", f"{1e3 * taken:,.1f} ms, {way}", good)]


def bandwidth(comm: Communicator, device: torch.device, sizes: Sizes) -> list[Row]:
    """Copies between a device and an arena's memory, which is pinned, against plain memory."""
    there = torch.ones(sizes.elements, device=device)
    flat = comm.allocate(sizes.elements, "float32")
    pin(flat)
    rows = []
    for name, here in (("arena", torch.from_numpy(flat)), ("plain memory", torch.empty(flat.size))):
        to = seconds(lambda here=here: there.copy_(here, non_blocking=True), device, sizes.repeats)
        back = seconds(
            lambda here=here: here.copy_(there, non_blocking=True), device, sizes.repeats
        )
        speeds = [f"{flat.nbytes / taken / 1e9:.1f} GB/s" for taken in (to, back)]
        rows.append(Row(f"{name} and device", f"{speeds[0]} to it, {speeds[1]} from it"))
    return rows


def network(width: int, device: torch.device) -> nn.Module:
    """Four layers, equal on all ranks."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers).to(device)


def step(comm: Communicator, device: torch.device, sizes: Sizes) -> list[Row]:
    """A whole training step with a round every 16 against DDP on the same group, per step."""
    inputs = torch.full((64, sizes.width), 1.0 + comm.rank, device=device)

    def steps(module: nn.Module, optimizer: Any) -> None:
        for _ in range(16):
            optimizer.zero_grad()
            module(inputs).pow(2).mean().backward()
            optimizer.step()

    local = network(sizes.width, device)
    inner = torch.optim.SGD(local.parameters(), lr=1e-3)
    optimizer = ours.PostLocalSGDOptimizer(inner, ours.PeriodicModelAverager(16, 0, comm))
    ours_s = seconds(lambda: steps(local, optimizer), device, sizes.repeats) / 16
    optimizer.flush()
    held = sha256(b"".join(bits(param) for param in local.parameters())).hexdigest()
    alike = len(set(comm.collect(held))) == 1
    everywhere = network(sizes.width, device)
    ddp = DistributedDataParallel(everywhere)
    theirs = torch.optim.SGD(ddp.parameters(), lr=1e-3)
    theirs_s = seconds(lambda: steps(ddp, theirs), device, sizes.repeats) / 16
    words = f"{1e3 * ours_s:.2f} ms; under DDP {1e3 * theirs_s:.2f} ms"
    return [Row("step, a round every 16", words, alike)]


def overlap(comm: Communicator, device: torch.device, sizes: Sizes) -> list[Row]:
    """A round in the background while the device multiplies matrices, and each of them alone."""
    flat = comm.allocate(sizes.elements, "float32")
    flat[:] = comm.rank
    matrix = torch.ones(sizes.width, sizes.width, device=device)

    def compute() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)
        synchronize(device)

    def both() -> None:
        request = comm.start(lambda group: group.allreduce(flat, "mean"))
        compute()
        request.wait(LIMIT_S)

    computed = seconds(compute, device, sizes.repeats)
    held = seconds(lambda: comm.allreduce(flat, "mean"), device, sizes.repeats)
    together = seconds(both, device, sizes.repeats)
    parts = f"computation {1e3 * computed:.1f} ms, round {1e3 * held:.1f} ms"
    good = bool((flat == (comm.size - 1) / 2).all())
    return [Row("a round beside a computation", f"{parts}, together {1e3 * together:.1f} ms", good)]


Part = Callable[[Communicator, torch.device, Sizes], list[Row]]
PARTS: Mapping[str, Part] = {
    part.__name__: part for part in (averages, route, bandwidth, step, overlap)
}


@dataclass(frozen=True)
class Job:
    """Parts that run on the ranks of one way of launching.

    Attributes:
        name: of the way.
        launch: what starts the ranks.
        parts: what they do, in this order.
        backend: of torch.distributed, if it is not the one that ``localsgd.torch`` takes.
    """

    name: str
    launch: Sequence[str]
    parts: Sequence[str]
    backend: str = ""


def jobs(devices: int) -> list[Job]:
    """What there is to do with so many GPUs."""
    mpi = [sys.executable, "-m", "localsgd.cli", "run", "-n", str(RANKS), "--", sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(RANKS)]
    found = [
        Job("one process", [sys.executable], ["bandwidth"]),
        Job("MPI", mpi, ["averages", "route", "overlap"]),
        Job("gloo", torchrun, ["averages", "route", "step"]),
    ]
    if devices >= RANKS:
        found.append(Job("NCCL", torchrun, ["averages", "route", "step"], "cpu:gloo,cuda:nccl"))
    return found


def run(job: Job, device: str, small: bool) -> list[Row]:
    """The rows of a job; one that says so if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "rows.json"
        words = [
            *job.launch,
            str(Path(__file__).resolve()),
            "--device",
            device,
            "--into",
            str(into),
        ]
        words += ["--small"] if small else []
        words += ["--backend", job.backend] if job.backend else []
        words += [word for part in job.parts for word in ("--part", part)]
        try:
            ended = subprocess.run(
                words,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [Row("the job", f"took more than {LIMIT_S} s", good=False)]
        if ended.returncode != 0 or not into.exists():
            sys.stderr.write(ended.stdout + ended.stderr)
            return [Row("the job", f"ended with {ended.returncode}", good=False)]
        return [Row(**entry) for entry in json.loads(into.read_text())]


def work(parts: Sequence[str], device: str, backend: str, sizes: Sizes, into: Path) -> None:
    """What one rank of a job does; rank 0 writes down what was found."""
    at = torch.device(device)
    if at.type != "cpu":
        module = torch.get_device_module(at)
        # One GPU that all share, or one for each.
        local = int(os.environ.get("LOCAL_RANK", "0")) % module.device_count()
        at = torch.device(at.type, local)
        module.set_device(at)
    if backend:
        dist.init_process_group(backend)
    comm = ours.world()
    rows = [row for part in parts for row in PARTS[part](comm, at, sizes)]
    if comm.rank == 0:
        into.write_text(json.dumps([asdict(row) for row in rows]))
    comm.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


def table(card: str, found: Mapping[str, Sequence[Row]]) -> str:
    """The rows of all jobs, as lines."""
    lines = [f"{card}, torch {torch.__version__}"]
    for name, rows in found.items():
        for row in rows:
            mark = "" if row.good else "WRONG: "
            lines.append(f"{name:<12} {row.what:<32} {mark}{row.found}")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--device", default="cuda", help="The type of the devices; cpu tries the script.")
@click.option("--small", is_flag=True, help="Little of everything: tries the script.")
@click.option("--part", "parts", multiple=True, hidden=True)
@click.option("--backend", default="", hidden=True)
@click.option("--into", type=click.Path(path_type=Path), hidden=True)
def main(device: str, small: bool, parts: Sequence[str], backend: str, into: Path | None) -> None:
    if into is not None:
        work(parts, device, backend, SMALL if small else LARGE, into)
        return
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was checked")
        sys.exit(NO_GPU)
    card, devices = "the CPU", 0
    if device == "cuda":
        card, devices = torch.cuda.get_device_name(0), torch.cuda.device_count()
    found = {job.name: run(job, device, small) for job in jobs(devices)}
    print(table(f"{card} ({devices} here)" if devices else card, found))
    sys.exit(0 if all(row.good for rows in found.values() for row in rows) else 1)


if __name__ == "__main__":
    main()
