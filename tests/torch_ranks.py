"""Runs a body on ranks that are processes with a torch.distributed group, torch's own and ours.

Without MPI our averagers run on the same group, so torch's classes are the oracle in the same
processes. These are started afresh and kept, since torch has threads and must not be forked. A
body is a closure and cannot be sent to them: every rank runs the test itself, as far as its call of
``run_ranks``, and there the body. A rank that fails or hangs ends the others, and says where.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

with warnings.catch_warnings():
    # torch's own package uses what torch deprecates.
    warnings.simplefilter("ignore")
    from torch.distributed.optim import PostLocalSGDOptimizer as TorchOptimizer

__all__ = ["TorchOptimizer", "run_ranks"]

# Far more than any body takes: eight ranks import torch one after the other on a busy machine.
LIMIT_S = 240.0


@dataclass
class Test:
    """A test as a rank finds it again.

    Attributes:
        path: the file.
        name: the function.
        params: what it is called with.
        results: of its calls of ``run_ranks`` so far.
    """

    path: Path
    name: str
    params: Mapping[str, Any]
    results: list[list[Any]] = field(default_factory=list)

    def run(self) -> None:
        getattr(_module(self.path), self.name)(**self.params)


class _Answer(BaseException):
    """Carries what a body returned out of the test around it."""


@dataclass
class _Here:
    """The test that this process runs, and on a rank which rank of how many."""

    test: Test | None = None
    rank: int | None = None
    folder: str = ""


_HERE = _Here()
_POOL: list[tuple[Any, Connection]] = []


def begin(test: Test) -> None:
    """Names the test whose calls of ``run_ranks`` follow."""
    _HERE.test = test


def run_ranks(size: int, body: Callable[..., Any], *args: object) -> list[Any]:
    """What ``body(rank, *args)`` returned on every rank; plain values."""
    assert _HERE.test is not None
    if _HERE.rank is not None:
        if _HERE.test.results:
            return _HERE.test.results.pop(0)
        raise _Answer(_on_rank(_HERE.rank, size, body, args))
    while len(_POOL) < size:
        _POOL.append(_started())
    with tempfile.TemporaryDirectory() as folder:
        for rank, (_, pipe) in enumerate(_POOL[:size]):
            pipe.send((_HERE.test, rank, folder))
        answers: dict[int, Any] = {}
        try:
            _receive(_POOL[:size], answers)
        finally:
            if len(answers) < size:
                _end_all()
    _HERE.test.results.append([answers[rank] for rank in range(size)])
    return _HERE.test.results[-1]


def _receive(ranks: Sequence[tuple[Any, Connection]], answers: dict[int, Any]) -> None:
    pipes = {pipe: rank for rank, (_, pipe) in enumerate(ranks)}
    while pipes:
        ready = wait(list(pipes), LIMIT_S)
        if not ready:
            for process, _ in ranks:
                os.kill(process.pid, signal.SIGUSR1)
            time.sleep(1.0)
            raise AssertionError(f"no answer from ranks {sorted(pipes.values())}")
        for pipe in ready:
            rank = pipes.pop(pipe)  # type: ignore[arg-type]
            try:
                good, value = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                good, value = False, "ended without an answer"
            assert good, f"rank {rank}: {value}"
            answers[rank] = value


def _started() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    return process, here


def _end_all() -> None:
    while _POOL:
        process, pipe = _POOL.pop()
        process.kill()
        process.join()
        pipe.close()


def _serve(pipe: Connection) -> None:
    """A rank: runs what it is sent until nobody sends any more."""
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)
    # As in the process of the tests: who means to be warned catches it.
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    while True:
        try:
            _HERE.test, _HERE.rank, _HERE.folder = pipe.recv()
        except EOFError:
            return
        try:
            assert _HERE.test is not None
            _HERE.test.run()
            raise AssertionError("the test did not come to the call that it was run for")
        except _Answer as answer:
            pipe.send((True, answer.args[0]))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _on_rank(rank: int, size: int, body: Callable[..., Any], args: Sequence[object]) -> Any:
    store = dist.FileStore(f"{_HERE.folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    value = body(rank, *args)
    dist.barrier()
    dist.destroy_process_group()
    return value


@lru_cache
def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
