"""Runs a body on ranks that are processes with a torch.distributed group, torch's own and ours.

Without MPI our averagers run on the same group, so torch's classes are the oracle in the same
processes. A rank that fails or hangs ends the others, and its error is shown.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

with warnings.catch_warnings():
    # torch's own package uses what torch deprecates.
    warnings.simplefilter("ignore")
    from torch.distributed.optim import PostLocalSGDOptimizer as TorchOptimizer

__all__ = ["TorchOptimizer", "run_ranks"]

LIMIT_S = 40.0


def run_ranks(size: int, body: Callable[..., Any], *args: object) -> list[Any]:
    """What ``body(rank, *args)`` returned on every rank; plain values."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(target=_rank, args=(pipes[rank][1], rank, size, folder, body, args))
            for rank in range(size)
        ]
        with warnings.catch_warnings():
            # The thread beside this one is the test's time limit; the children do without it.
            warnings.simplefilter("ignore", DeprecationWarning)
            for process in processes:
                process.start()
        for _, end in pipes:
            end.close()
        answers: dict[int, tuple[bool, Any]] = {}
        ends: dict[Any, int] = {pipe[0]: rank for rank, pipe in enumerate(pipes)}
        try:
            while ends:
                ready = wait(list(ends), LIMIT_S)
                if not ready:
                    _show_where_they_stand(processes)
                    raise AssertionError(f"no answer from ranks {sorted(ends.values())}")
                for end in ready:
                    rank = ends.pop(end)
                    answers[rank] = _receive(end)
                    assert answers[rank][0], f"rank {rank}: {answers[rank][1]}"
        finally:
            for process in processes:
                if set(answers) != set(range(size)):
                    process.kill()
                process.join()
    return [answers[rank][1] for rank in range(size)]


def _show_where_they_stand(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
            process.join(1.0)


def _receive(end: Any) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = end.recv()
    except EOFError:
        return False, "ended without an answer"
    return answer


def _rank(
    answer: Connection, rank: int, size: int, folder: str, body: Callable[..., Any], args: Any
) -> None:
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        answer.send((True, body(rank, *args)))
        dist.barrier()
    except BaseException:
        answer.send((False, traceback.format_exc()))
