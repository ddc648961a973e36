"""Gradients get the memory that the last step freed, unless the user has set malloc up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from localsgd.torch.arrays.allocation import has_setting

# Pages of the gradients of one step: four layers' of 4 MB each.
PAGES, STEPS = 4 * 4 * 1024 * 1024 // os.sysconf("SC_PAGE_SIZE"), 10

# Below a layer's size, so that every gradient's pages are taken anew. What malloc does by itself is
# no measure: its thresholds follow what was freed before, and its heap lies where chance put it.
RETURNED = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}

# Pages of the usual size, whatever the system prefers: faults are counted.
PROGRAM = f"""
import ctypes, resource, sys
import torch
from torch import nn

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
torch.set_num_threads(1)
model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
if sys.argv[1] == "wrapped":
    from localsgd.torch import PeriodicModelAverager, PostLocalSGDOptimizer

    optimizer = PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(4))
inputs = torch.ones(8, 1024)

def step():
    optimizer.zero_grad()
    model(inputs).mean().backward()
    optimizer.step()

for _ in range(20):
    step()
# The least of some rounds: the kernel may take pages away meanwhile, to see which node uses them.
found = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({STEPS}):
        step()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found))
"""

SETTINGS = [
    {"MALLOC_TRIM_THRESHOLD_": "131072"},
    {"MALLOC_TOP_PAD_": "131072"},
    {"MALLOC_MMAP_THRESHOLD_": "131072"},
    {"MALLOC_MMAP_MAX_": "65536"},
    {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    {"LD_PRELOAD": "libjemalloc.so.2"},
]


def faults(way: str, environment: Mapping[str, str]) -> int:
    """How often a page had to be had from the kernel, in some steps of a fresh process."""
    unset = {name: value for name, value in os.environ.items() if not has_setting({name: value})}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, way],
        env={**unset, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    return int(ended.stdout)


def test_gradients_get_the_memory_that_the_last_step_freed() -> None:
    """Fewer than a tenth of the pages: a block may have to be had once more as the heap settles."""
    assert faults("wrapped", {}) < STEPS * PAGES / 10


def test_nothing_is_changed_where_the_user_has_set_malloc_up() -> None:
    assert faults("bare", RETURNED) >= STEPS * PAGES
    assert faults("wrapped", RETURNED) >= STEPS * PAGES


def test_other_variables_are_no_settings_of_malloc() -> None:
    others = {
        "GLIBC_TUNABLES": "glibc.rtld.nns=4",
        "LD_PRELOAD": "libelse.so",
        "MALLOC_ARENA_MAX": "2",
    }
    assert not has_setting(others)
    assert all(has_setting({**others, **setting}) for setting in SETTINGS)
