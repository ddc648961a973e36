"""Tells the ranks of a test which test it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import torch_ranks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Iterator[None]:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    torch_ranks.begin(torch_ranks.Test(item.path, item.originalname, params))
    return (yield)
