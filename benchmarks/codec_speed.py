"""On one core: how fast are numbers written for the wire, and read again?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import Goal, Report
from localsgd.comm.codecs import BFLOAT16, E3M0, FLOAT16, Codec, Int8, RandomK, Sign, TopK, TwoBit

COUNT = 4_000_000
# What the passes of two hosts give a codec at a time.
CHUNK = 32_768
CODECS: dict[str, tuple[Codec, float | None]] = {
    "float16": (FLOAT16, 1.0),
    "bfloat16": (BFLOAT16, 4.0),
    "int8": (Int8(), 2.5),
    "4 bits (E3M0)": (E3M0(), 1.2),
    "top 1 %": (TopK(41), 1.5),
    "2 bits": (TwoBit(), None),
    "sign": (Sign(), None),
    "random 1 %": (RandomK(0.01), None),
}


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    values = np.random.default_rng(0).normal(size=COUNT).astype(np.float32)
    found = np.empty_like(values)

    def both(codec: Codec) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, COUNT, CHUNK):
                part = values[start : start + CHUNK]
                message = np.empty(codec.encoded_bytes(part.size), np.uint8)
                codec.encode(part, message)
                codec.decode(message, found[start : start + CHUNK])

        return run

    ways = {name: both(codec) for name, (codec, _) in CODECS.items()}
    for way in ways.values():
        way()
    localsgd.world()
    return in_turn_on_all_ranks(ways, options["rounds"])


def measure(rounds: int) -> Report:
    report = Report("codec_speed", f"{__doc__} {COUNT / 1e6:g} M float32 in blocks of {CHUNK:,}.")
    times = run_here("benchmarks.codec_speed", 1, {"rounds": rounds})
    spreads = report.add_times("encode and decode", times, baseline="float16")
    for name, (_, least) in CODECS.items():
        if least is not None:
            speed = 4 * COUNT / spreads[name].median / 1e9
            report.goals.append(Goal("codec-speed", name, speed, least, True, "GB/s"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=11)
