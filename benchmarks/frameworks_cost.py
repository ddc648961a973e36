"""On one host: what do the classes for frameworks add to a step that the framework takes anyway?

One worker, so that there is nobody to send to, and no round is due. The step is as short as a
step gets, so that what is added shows; it is timed from one forward pass to the next.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.jobs import jobs_in_turn, run_alone, script
from benchmarks.measure import Times
from benchmarks.report import OURS, Goal, Report

ALONE = "the framework alone"
FRAMEWORKS = ("transformers", "lightning", "accelerate")
RARELY, BATCH, WARM_UP, JOBS, MOST_US = 1_000_000, 8, 50, 3, 50.0


def make_model(begun: list[float]) -> Any:
    """A model of two small layers that notes when each of its passes began."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

        def forward(self, inputs: Any, labels: Any) -> dict[str, Any]:
            begun.append(time.perf_counter())
            outputs = self.layers(inputs)
            return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}

    torch.manual_seed(0)
    return Model()


def make_data(steps: int) -> Any:
    import torch

    one = {"inputs": torch.ones(8), "labels": torch.ones(1)}
    return [one] * (steps * BATCH)


def with_transformers(model: Any, steps: int, averaging: Any) -> None:
    from transformers import Trainer, TrainingArguments

    options: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    options.update(per_device_train_batch_size=BATCH, logging_strategy="no", save_strategy="no")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, max_steps=steps, optim="adamw_torch", **options)
        data = make_data(steps)
        if averaging is None:
            Trainer(model, arguments, train_dataset=data).train()
        else:
            from localsgd.frameworks.transformers import LocalSGDTrainer

            LocalSGDTrainer(model, arguments, train_dataset=data, averaging=averaging).train()


def with_lightning(model: Any, steps: int, averaging: Any) -> None:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    class Module(LightningModule):  # type: ignore[misc]  # Lightning's types are not there
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    options.update(enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    if averaging is not None:
        from localsgd.frameworks.lightning import LocalSGDStrategy

        options["strategy"] = LocalSGDStrategy(averaging)
    Trainer(max_steps=steps, **options).fit(Module(), DataLoader(make_data(steps), BATCH))


def with_accelerate(model: Any, steps: int, averaging: Any) -> None:
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    if averaging is None:
        accelerator = Accelerator(cpu=True)
    else:
        from localsgd.frameworks.accelerate import LocalSGDAccelerator

        accelerator = LocalSGDAccelerator(averaging, cpu=True)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(make_data(steps), BATCH)
    )
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()


TRAININGS: dict[str, Callable[[Any, int, Any], None]] = {
    "transformers": with_transformers,
    "lightning": with_lightning,
    "accelerate": with_accelerate,
}


def worker(options: Mapping[str, Any]) -> Times:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    averaging = None
    if options["ours"]:
        from localsgd.torch import LocalSGD

        averaging = partial(LocalSGD, period=RARELY)
    begun: list[float] = []
    TRAININGS[options["framework"]](make_model(begun), options["steps"], averaging)
    ends = begun[WARM_UP + 1 :]
    return {
        options["framework"]: [
            end - begin for begin, end in zip(begun[WARM_UP:], ends, strict=False)
        ]
    }


def measure(rounds: int) -> Report:
    question = " ".join((__doc__ or "").split())
    report = Report("frameworks_cost", f"{question} {JOBS} jobs each, of {rounds} steps.")

    def job(framework: str, *, ours: bool) -> Callable[[], Times]:
        options = {"framework": framework, "ours": ours, "steps": WARM_UP + rounds}
        return lambda: run_alone("benchmarks.frameworks_cost", options)

    for framework in FRAMEWORKS:
        ways = {OURS: job(framework, ours=True), ALONE: job(framework, ours=False)}
        times = {way: found[framework] for way, found in jobs_in_turn(ways, JOBS).items()}
        spreads = report.add_times(framework, times, baseline=ALONE)
        added_us = 1e6 * (spreads[OURS].median - spreads[ALONE].median)
        report.goals.append(
            Goal("frameworks-cost", framework, added_us, MOST_US, False, "µs more a step")
        )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=400)
