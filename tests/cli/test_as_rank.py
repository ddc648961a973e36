"""A program runs on a rank as Python runs it, and ends as it does there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.jobs import LIMIT_S
from localsgd.cli import as_rank

PROGRAMS = {
    "an error": "def load():\n    raise KeyError('no such batch')\nload()",
    "an error because of another": (
        "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('no') from error"
    ),
    "no Python": "def f(:\n",
    "an exit code": "import sys\nsys.exit(3)",
    "an exit with a message": "import sys\nsys.exit('wrong')",
    "an interrupt": "raise KeyboardInterrupt",
    "a hook of its own": (
        "import sys\nsys.excepthook = lambda *what: print('hook', what[:2])\nraise OSError(5)"
    ),
    "an error in a forked copy": (
        "import os\nif os.fork():\n    print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "else:\n    raise OSError('in the copy')"
    ),
    "names": (
        "import sys, __main__\n"
        "print(__name__, __file__, sys.argv, sys.path[0], __spec__, __main__.__file__)\n"
        "print(sorted(name for name in globals() if not name.startswith('__')))"
    ),
    "pickles of its own classes": (
        "import pickle\nclass Here:\n    pass\n"
        "print(type(pickle.loads(pickle.dumps(Here()))) is Here)"
    ),
    "processes that load it again": (
        "import multiprocessing\n"
        "def double(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(double, [1, 2]))"
    ),
    "annotations that are looked at": (
        "import dataclasses, typing\n@dataclasses.dataclass\nclass Pair:\n    left: int\n"
        "print(typing.get_type_hints(Pair), Pair.__annotations__)"
    ),
}


def ended(folder: Path, *words: str, notes: Path | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of this Python with these words."""
    found = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=folder,
        env={**os.environ, as_rank.FOLDER: "" if notes is None else str(notes)},
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize("body", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_is_what_it_is_under_python(tmp_path: Path, body: str) -> None:
    (tmp_path / "job.py").write_text(body)
    plain = ended(tmp_path, "job.py", "--lr", "1")
    assert ended(tmp_path, as_rank.__file__, "job.py", "--lr", "1") == plain


@pytest.mark.parametrize("name", ["names", "an exit code", "pickles of its own classes"])
def test_a_module_is_what_it_is_under_python(tmp_path: Path, name: str) -> None:
    body = PROGRAMS[name].replace("__spec__", "__spec__.name")
    (tmp_path / "job.py").write_text(body)
    plain = ended(tmp_path, "-m", "job", "--lr", "1")
    assert ended(tmp_path, as_rank.__file__, "-m", "job", "--lr", "1") == plain


def test_nothing_of_the_library_is_loaded_before_the_program(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import sys\nprint({name.split('.')[0] for name in sys.modules} & {'localsgd', 'numpy'})"
    )
    assert ended(tmp_path, as_rank.__file__, "job.py")[1] == "set()\n"


def test_what_is_written_down_is_not_printed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "job.py").write_text(PROGRAMS["an error"])
    assert ended(tmp_path, as_rank.__file__, "job.py", notes=notes) == (1, "", "")
    assert len(list(notes.glob("*-error.json"))) == 1


def test_what_cannot_be_written_down_is_printed(tmp_path: Path) -> None:
    """On a host that has no such folder, or once it is gone."""
    (tmp_path / "job.py").write_text(PROGRAMS["an error"])
    plain = ended(tmp_path, "job.py")
    assert ended(tmp_path, as_rank.__file__, "job.py", notes=tmp_path / "nowhere") == plain
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "job.py").write_text(
        f"import shutil\nshutil.rmtree({str(notes)!r})\n{PROGRAMS['an error']}"
    )
    code, _, said = ended(tmp_path, as_rank.__file__, "job.py", notes=notes)
    assert code == 1 and said.endswith("KeyError: 'no such batch'\n")


def test_a_forked_copy_writes_nothing_down(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "job.py").write_text(PROGRAMS["an error in a forked copy"])
    code, output, said = ended(tmp_path, as_rank.__file__, "job.py", notes=notes)
    assert (code, output) == (0, "1\n") and "OSError: in the copy" in said
    assert list(notes.glob("*.json")) == []
