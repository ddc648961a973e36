"""The first program that a user has: complete, short, and to be changed."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from localsgd.cli.launcher import LaunchError

PROGRAM = '''\
"""Workers learn three weights, each from data of its own, and average them every 16 steps."""

import numpy as np

from localsgd import Arena, LocalSGD, optim, world

comm = world()  # all workers of this job
data = np.random.default_rng(comm.rank)  # each has data of its own
params = Arena({"w": np.zeros(3)}, comm)  # add arrays here
training = LocalSGD(optim.SGD(params, lr=0.05), period=16)
for step in range(1, 129):
    x = data.normal(size=(32, 3))
    error = x @ params["w"] - x @ [1.0, 2.0, 3.0]  # what they are to learn
    params.grad["w"] += x.T @ error / len(x)
    training.step()  # a local step; every 16th also averages
    if step % 32 == 0 and comm.rank == 0:
        loss = (error @ error) / (2 * len(x))
        print(f"step {step}: loss {loss:.6f}, weights {params['w'].round(2)}")
'''


def write_first(name: str) -> Path:
    """Writes the program where there is none, with ``.py`` added to its name if that is missing.

    Raises:
        LaunchError: if there is something, or it cannot be written, or its name would hide a
            module that it needs.
    """
    path = Path(name if name.endswith(".py") else f"{name}.py")
    if path.exists():
        raise LaunchError(
            f"{path} is there already; give another name: localsgd new my_{path.stem}"
        )
    hides = path.stem in sys.stdlib_module_names or PathFinder.find_spec(path.stem, sys.path)
    if hides:
        raise LaunchError(
            f"{path} would hide the module {path.stem}; give another name: "
            f"localsgd new my_{path.stem}"
        )
    try:
        path.write_text(PROGRAM)
    except OSError as error:
        raise LaunchError(f"{path} cannot be written: {error.strerror}") from None
    return path
