"""Averages of CPU tensors as of those on devices: what a device adds is the device alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from localsgd.torch.comm import device_groups


@contextmanager
def carried_by_gloo() -> Iterator[None]:
    """Here gloo carries averages of tensors on the CPU, as NCCL does of those on CUDA."""
    device_groups.BACKENDS["cpu"] = "gloo"
    try:
        yield
    finally:
        del device_groups.BACKENDS["cpu"]


@contextmanager
def on_hosts(hosts: str) -> Iterator[None]:
    """The group that is connected here has this layout."""
    os.environ["LOCALSGD_HOSTS"] = hosts
    try:
        yield
    finally:
        del os.environ["LOCALSGD_HOSTS"]
