"""The rooms of the code: which may import which, by which door, and what their files are called."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
import rooms

ROOT = rooms.ROOT

# A room, and the rooms that it may import: only such as stand above it in this table.
MAY_IMPORT: dict[str, set[str]] = {
    "comm.compiled": set(),
    "comm.codecs": {"comm.compiled"},
    "comm.contract": {"comm.codecs"},
    "comm.waiting": {"comm.contract"},
    "comm.memory": {"comm.contract", "comm.waiting"},
    "comm.meeting": {"comm.codecs", "comm.contract", "comm.waiting", "comm.memory"},
    "comm.reduction": {
        *("comm.codecs", "comm.contract", "comm.waiting", "comm.memory", "comm.meeting"),
        "comm.compiled",
    },
    "comm.group": {
        *("comm.codecs", "comm.contract", "comm.waiting", "comm.memory", "comm.meeting"),
        "comm.reduction",
    },
    "comm.transports": {"comm.contract", "comm.waiting", "comm.group"},
    "comm.start": {"comm.contract", "comm.waiting", "comm.group", "comm.transports"},
    "comm": {"comm.codecs", "comm.contract", "comm.group", "comm.transports", "comm.start"},
    "checks": {"comm", "comm.contract"},
    "resizing": {"comm", "comm.contract"},
    "arrays": {"comm.codecs", "comm.contract", "checks", "resizing"},
    "simulate": {
        *("comm", "comm.contract", "comm.memory", "comm.group", "comm.transports", "checks"),
    },
    "schedules": {"checks"},
    "lr": {"checks"},
    "data": {"comm", "comm.contract", "checks", "resizing"},
    "optim": {"comm.compiled", "comm.contract", "checks", "arrays"},
    "outer": {"comm", "comm.contract", "checks", "arrays", "optim"},
    "averagers": {
        *("comm", "comm.codecs", "comm.contract", "checks", "arrays", "schedules", "outer"),
        "resizing",
    },
    "gossip": {
        *("comm", "comm.codecs", "comm.contract", "checks", "arrays", "schedules", "averagers"),
        "resizing",
    },
    "decoupled": {
        *("comm", "comm.contract", "comm.reduction", "checks", "arrays", "schedules", "outer"),
        *("averagers", "resizing"),
    },
    "gradients": {"comm", "comm.contract", "checks", "arrays", "averagers"},
    "training": {
        *("comm", "comm.contract", "checks", "arrays", "schedules", "averagers", "optim"),
        *("gradients", "lr", "resizing"),
    },
    "methods": {
        *("comm", "comm.contract", "checks", "arrays", "schedules", "averagers", "gradients", "lr"),
        *("optim", "outer", "training", "resizing", "decoupled"),
    },
    "checkpoint": {"comm", "comm.contract", "checks", "arrays", "schedules", "resizing"},
    "elastic": {
        *("comm", "comm.contract", "checks", "arrays", "averagers", "training", "checkpoint"),
    },
    "telemetry": {"comm", "checks", "arrays", "schedules", "averagers"},
    "cli": {
        "comm",
        "comm.contract",
        "comm.memory",
        "comm.transports",
        "comm.waiting",
        "simulate",
        "telemetry",
    },
    "localsgd": {
        *("comm", "arrays", "schedules", "averagers", "optim", "outer", "gradients", "lr", "data"),
        *("gossip", "training", "methods", "checkpoint", "elastic", "simulate", "telemetry"),
        "decoupled",
    },
    "torch.comm": {"comm", "comm.contract", "comm.waiting", "comm.group", "comm.transports"},
    "torch.arrays": {
        *("comm", "comm.codecs", "comm.contract", "comm.reduction", "checks", "arrays"),
        "torch.comm",
    },
    "torch.averagers": {
        *("comm", "comm.contract", "checks", "arrays", "schedules", "averagers", "torch.comm"),
        "torch.arrays",
    },
    "torch.gradients": {
        *("comm", "comm.contract", "checks", "averagers", "gradients", "training", "torch.comm"),
        *("torch.arrays", "torch.averagers"),
    },
    "torch.training": {
        *("comm", "comm.contract", "checks", "averagers", "training", "torch.comm"),
        *("torch.arrays", "torch.averagers", "torch.gradients", "resizing"),
    },
    "torch.methods": {
        *("comm", "comm.contract", "checks", "arrays", "averagers", "training", "methods"),
        *("torch.comm", "torch.arrays", "torch.averagers", "torch.training", "resizing"),
    },
    "torch.checkpoint": {
        *("comm", "comm.contract", "schedules", "checkpoint", "torch.comm", "torch.arrays"),
        "resizing",
    },
    "torch.elastic": {
        *("comm.contract", "arrays", "averagers", "training", "elastic"),
        *("torch.comm", "torch.arrays", "torch.averagers", "torch.training"),
    },
    "torch": {
        *("torch.comm", "torch.arrays", "torch.averagers", "torch.gradients", "torch.training"),
        *("torch.methods", "torch.checkpoint", "torch.elastic", "comm"),
    },
    "frameworks": {"comm", "checks", "torch"},
    "jax": {"comm", "arrays"},
}
# Files that other rooms import by name. The face of transports must not load MPI.
DOORS = {f"localsgd.comm.{name}" for name in rooms.TOP_OF_COMM} | {
    "localsgd.lr",
    "localsgd.resizing",
    "localsgd.comm.transports.mpi",
}
MPI_FILES = ("mpi_library", "replacing")
# Rooms whose files have the names of another's, since they answer the same for it.
MIRRORED = {"localsgd.torch": "localsgd", "localsgd.outer": "localsgd.optim"}
# Tests of more than one room.
OF_ALL = {
    Path("tests"),
    Path("tests/with_torch"),
    Path("tests/conformance"),
    Path("tests/integration"),
    Path("tests/slurm"),
}


def test_a_room_may_import_only_what_stands_above_it_in_the_table() -> None:
    above: set[str] = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= above, f"{room}: {allowed - above}"
        above.add(room)


@pytest.mark.parametrize("module", rooms.modules())
def test_imports_are_in_the_table_of_rooms(module: str) -> None:
    own = rooms.room_of(module)
    for name in rooms.imported(module):
        room = rooms.room_of(name)
        assert room == own or room in MAY_IMPORT[own], f"{module} must not import {name}"


@pytest.mark.parametrize("module", rooms.modules())
def test_rooms_are_entered_by_their_face_alone(module: str) -> None:
    for name in rooms.imported(module):
        if rooms.room_of(name) != rooms.room_of(module):
            assert rooms.is_face(name) or name in DOORS, f"{module} must not import {name}"


def test_the_table_of_rooms_allows_nothing_that_nobody_does() -> None:
    assert rooms.arrows() == MAY_IMPORT


def test_faces_list_what_they_import() -> None:
    for module, path in rooms.modules().items():
        tree = ast.parse(path.read_text())
        imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        if rooms.is_face(module):
            names = {alias.asname or alias.name for node in imported for alias in node.names}
            assert names <= rooms.exported(module), module


def test_comm_uses_relative_imports_and_starts_mpi_in_two_files_alone() -> None:
    for path in ROOT.glob("comm/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "localsgd", path
                assert name.split(".")[0] != "mpi4py" or path.stem in MPI_FILES, path


def test_files_of_one_name_are_of_rooms_that_answer_the_same() -> None:
    places = defaultdict(set)
    for module in rooms.modules():
        if not rooms.is_face(module):
            room, _, name = module.rpartition(".")
            for mirror, original in MIRRORED.items():
                room = room.replace(mirror, original)
            places[name].add(room)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_rooms_of_torch_have_the_names_of_the_cores() -> None:
    of_torch = {room.removeprefix("torch.") for room in MAY_IMPORT if room.startswith("torch.")}
    assert of_torch <= MAY_IMPORT.keys()


def test_the_folder_of_a_test_is_that_of_its_source() -> None:
    for path in ROOT.glob("tests/**/test_*.py"):
        folder = path.parent.relative_to(ROOT)
        if folder not in OF_ALL:
            room = folder.relative_to("tests")
            beside = [ROOT / room, ROOT / "localsgd" / room]
            if room.parts[0] == "with_torch":
                inside = room.relative_to("with_torch")
                beside = [ROOT / "localsgd" / "torch" / inside, ROOT / "localsgd" / inside]
            assert any((place / "__init__.py").exists() for place in beside), path


def test_no_room_of_the_picture_hides_another_or_is_cut_off() -> None:
    numbers = r'<rect x="(-?\d+)" y="(\d+)" width="(\d+)" height="(\d+)"'
    found = [tuple(map(int, words)) for words in re.findall(numbers, rooms.drawing())]
    assert len(found) == len(rooms.arrows())
    for index, (x, y, width, height) in enumerate(found):
        assert x >= 0 and x + width <= rooms.WIDTH
        for left, above, wide, high in found[:index]:
            beside = x >= left + wide or left >= x + width
            assert beside or y >= above + high or above >= y + height


def test_the_picture_of_the_rooms_is_what_its_script_draws_now() -> None:
    """``python docs/pictures/rooms.py`` draws it anew."""
    assert (ROOT / "docs/pictures/rooms.svg").read_text() == rooms.drawing()


def test_paths_on_the_map_lead_to_files_and_folders_that_exist() -> None:
    for page in ("docs/architecture.md", "CONTRIBUTING.md"):
        for path in re.findall(
            r"`((?:comm|localsgd|tests|docs)/[\w/.]*)`", (ROOT / page).read_text()
        ):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_map_names_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("*/*/__init__.py")}
    folders = {folder for folder in folders if folder.parts[0] in ("comm", "localsgd")}
    for folder in folders - {Path("localsgd/comm")}:
        assert f"`{folder}/`" in text, folder
