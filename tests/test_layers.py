"""Imports point one way: every module may use those of its own layer and of the layers below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The lowest layer first. A package stands for all its modules.
LAYERS: list[set[str]] = [
    {"localsgd.comm"},
    {"localsgd.agreement", "localsgd.checks", "localsgd.words"},
    {"localsgd.layout", "localsgd.named", "localsgd.rules", "localsgd.schedules"},
    {"localsgd.arena"},
    {"localsgd.averagers", "localsgd.optim", "localsgd.data", "localsgd.lr", "localsgd.streams"},
    {"localsgd.state", "localsgd.buffers", "localsgd.gradients", "localsgd.parts"},
    {"localsgd.options", "localsgd.uneven", "localsgd.loading"},
    {"localsgd.optimizer"},
    {"localsgd.local_sgd"},
    {"localsgd"},
    {"localsgd.torch"},
    {"localsgd.cli"},
]
LAYER = {module: number for number, layer in enumerate(LAYERS) for module in layer}

# Inside comm: the lowest first. What supplies bytes must not know of what is built on it.
COMM: list[set[str]] = [
    {"errors", "topology", "codecs", "settings"},
    {"base"},
    {"compiled", "hugepages"},
    {"arithmetic", "plan", "memory", "agreement", "nonmember", "waiting", "leaving"},
    {"checks", "header", "messages", "regions", "background"},
    {"board", "sharing", "wires", "news"},
    {"fused"},
    {"entrance", "staging", "native"},
    {"guards", "reducing"},
    {"reductions"},
    {"group"},
    {"bootstrap"},
    {"solo", "threads", "mpi"},
    {"start"},
    {"__init__"},
]
COMM_LAYER = {module: number for number, layer in enumerate(COMM) for module in layer}


def sources() -> list[Path]:
    found = [*ROOT.glob("comm/*.py")]
    found += [path for path in ROOT.glob("localsgd/**/*.py") if "comm" not in path.parts]
    return sorted(found)


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "comm":
        parts.insert(0, "localsgd")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    """The layer of the longest name in the table that the module's name begins with."""
    names = module.split(".")
    for length in range(len(names), 0, -1):
        name = ".".join(names[:length])
        if name in LAYER and (name != "localsgd" or length == len(names)):
            return LAYER[name]
    raise KeyError(f"{module} is not in the table of layers")


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, in functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from named(node, path)


def named(node: ast.ImportFrom, path: Path) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        package = module_of(path.parent / "__init__.py").split(".")
        base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [base])])
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if is_module(submodule) else base


def is_module(name: str) -> bool:
    relative = Path(*name.split(".")[1:]) if name.startswith("localsgd.") else Path(name)
    folder = ROOT if name.startswith("localsgd.comm") else ROOT / "localsgd"
    return (folder / relative).with_suffix(".py").exists() or (folder / relative).is_dir()


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(module_of(path))
    for name in imported(path):
        if name.split(".")[0] == "localsgd":
            assert layer_of(name) <= own, f"{module_of(path)} must not import {name}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("comm/*.py")), ids=module_of)
def test_imports_inside_comm_point_down(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                assert COMM_LAYER[name] < COMM_LAYER[path.stem], f"{path.stem} imports {name}"


def test_comm_uses_relative_imports_and_mpi_in_one_file_alone() -> None:
    for path in ROOT.glob("comm/*.py"):
        names = list(imported(path))
        assert "mpi4py" not in names or path.stem == "mpi"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("localsgd"), path
