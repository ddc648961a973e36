"""A small training that all three frameworks do: model, data, and what ranks ended with."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from localsgd import Communicator
from localsgd.torch import GradientStage, LocalSGD, PeriodicModelAverager, PostLocalSGDOptimizer

SAMPLES = 26
LR, CLIP, ACCUMULATED, BATCH, PERIOD = 0.05, 0.02, 2, 2, 3


class Samples(Dataset):  # type: ignore[type-arg]
    """Sample i: inputs that are i's alone, of a linear rule. Notes which were taken."""

    def __init__(self) -> None:
        numbers = torch.arange(SAMPLES * 4).view(SAMPLES, 4)
        self.inputs = torch.sin(numbers.float())
        self.labels = self.inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        self.taken: list[int] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.taken.append(int(index))
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


class Model(nn.Module):
    """Two layers, and dropout where its random numbers are to matter; its own loss."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 1)
        )

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.layers(inputs)
        return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}


def model_of(comm: Communicator, dropout: float = 0.0) -> Model:
    """A model that begins with values of this rank's own."""
    torch.manual_seed(100 + comm.rank)
    return Model(dropout)


def digest(tensors: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def alike(comm: Communicator, model: nn.Module) -> bool:
    """Whether all ranks hold the same bits. Collective."""
    return len(set(comm.collect(digest(model.state_dict())))) == 1


def shared_folder(comm: Communicator) -> Path:
    """An empty folder, the same on all ranks. Collective."""
    name = tempfile.mkdtemp(dir=os.environ.get("LOCALSGD_TEST_FOLDER")) if comm.rank == 0 else ""
    return Path(comm.collect(name)[0])


def local(model: nn.Module) -> Any:
    """What wraps optimizers of a model for local SGD."""
    return lambda optim: LocalSGD(optim, PERIOD)


def post_local(model: nn.Module) -> Any:
    """As ``local``, for post-local SGD: in the first 4 steps gradients are averaged."""

    def wrap(optim: Any) -> PostLocalSGDOptimizer:
        averager = PeriodicModelAverager(PERIOD, 4)
        return PostLocalSGDOptimizer(optim, averager, gradients=GradientStage(model, averager))

    return wrap


METHODS = {"local": local, "post_local": post_local}
