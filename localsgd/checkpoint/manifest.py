"""What a checkpoint consists of: one small file of JSON, which has a digest of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from localsgd.checkpoint.rank_file import RankFile
from localsgd.checkpoint.tree import Broken
from localsgd.checks import checked_count
from localsgd.comm.contract import Json

NAME = "manifest.json"
_FORMAT = 1
# A hundred bytes a rank: enough for more ranks than there will be.
_LONGEST_BYTES = 1 << 26


@dataclass(frozen=True)
class Manifest:
    """What was saved, by whom.

    Attributes:
        step: after how many local steps.
        hosts: the layout of the ranks, as ``repr`` of their topology has it.
        parts: the names of what was saved.
        configuration: what the user wanted to be kept with it.
        files: of every rank, in rank order.
    """

    step: int
    hosts: str
    parts: tuple[str, ...]
    configuration: Json
    files: tuple[RankFile, ...]

    def text(self) -> str:
        """The manifest as JSON."""
        content = {
            "format": _FORMAT,
            "step": self.step,
            "hosts": self.hosts,
            "parts": list(self.parts),
            "configuration": self.configuration,
            "files": [{"bytes": file.nbytes, "sha256": file.digest} for file in self.files],
        }
        return json.dumps({**content, "sha256": _digest(content)}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in a checkpoint's folder.

        Raises:
            Broken: if it is not what was written, or of a later version.
            OSError: if it cannot be read.
        """
        path = folder / NAME
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes > _LONGEST_BYTES:
                raise Broken(f"{path} must have at most {_LONGEST_BYTES} bytes, got {nbytes}")
            # What is read takes memory for as much as is asked for.
            data = file.read(nbytes)
        try:
            content = json.loads(data)
            claimed = content.pop("sha256")
            if claimed != _digest(content):
                raise Broken(f"{path} has changed since it was written: its digest is another")
            if content["format"] != _FORMAT:
                raise Broken(f"{path} must be of format {_FORMAT}, got {content['format']!r}")
            return cls._of(content)
        except Broken:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Broken(f"{path} is no manifest: {error!r}") from None

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Manifest:
        files: Sequence[Mapping[str, Any]] = content["files"]
        return cls(
            step=checked_count("step", content["step"], at_least=0),
            hosts=str(content["hosts"]),
            parts=tuple(str(name) for name in content["parts"]),
            configuration=content["configuration"],
            files=tuple(
                RankFile(checked_count("bytes", file["bytes"], at_least=0), str(file["sha256"]))
                for file in files
            ),
        )


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()
