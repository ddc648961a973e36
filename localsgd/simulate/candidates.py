"""What a plan compares: methods with settings, from the least drastic to the most.

The order is that of preference. First what is exact: synchronous steps, the same as one worker with
all samples. Then what keeps workers together more often, by exact rounds; then rounds that arrive
late; then long periods, which need an outer step; last what compresses as well. The numbers are
those of the papers, where these have some.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localsgd.comm import Codec, codecs

INNER = "optim.AdamW(params, lr=4e-4)"
_FOUR_BITS = codecs.E3M0(4096)
_EIGHT_BITS = codecs.Int8(4096)


@dataclass(frozen=True)
class Candidate:
    """One method with its settings.

    Attributes:
        method: its name.
        settings: in words.
        line: a line of Python that makes it of ``params``, with ``localsgd`` and ``optim``.
        period: steps from one round of all workers to the next; of a fragment, if there are some.
        host_period: steps between rounds of every host's workers among themselves; 0 for none.
        fragments: in how many parts a round goes, one after another.
        delay: steps for which a round may be on its way; no more than until the next one begins.
        codec: how rounds travel between hosts.
        exact: whether training takes the steps of one worker with all samples.
    """

    method: str
    settings: str
    line: str
    period: int
    host_period: int = 0
    fragments: int = 1
    delay: int = 0
    codec: Codec | None = None
    exact: bool = False

    def __str__(self) -> str:
        return f"{self.method} ({self.settings})"

    def rounds(self, steps: int) -> int:
        """How many rounds of all workers, and of all parameters, so many steps have."""
        return -(-steps // self.period) if self.host_period else steps // self.period

    def host_rounds(self, steps: int) -> int:
        """How many rounds of hosts' workers among themselves so many steps have."""
        if not self.host_period:
            return 0
        # A step that both are due after has the larger round alone.
        return -(-steps // self.host_period) - self.rounds(steps)


def catalogue(steps: int, hosts: int, workers: int) -> Iterator[Candidate]:
    """The methods that make a difference there, from the least drastic to the most.

    Args:
        steps: of the whole training.
        hosts, workers: hosts, and workers on each.
    """
    yield Candidate(
        "synchronous",
        "gradients, every step",
        f"training = localsgd.LocalSGD({INNER}, period=1, synchronous_steps={steps}, "
        "gradients=localsgd.GradientStage())",
        period=1,
        exact=True,
    )
    levels = hosts > 1 and workers > 1
    if levels:
        yield _hierarchical(1, 16)
    yield _local(4)
    yield _local(16)
    if levels:
        yield _hierarchical(4, 64)
    yield _local(64)
    yield _overlapped(16, 4)
    yield _overlapped(64, 16)
    yield _diloco(100)
    yield _streaming(100, 4, 5)
    yield _diloco(500)
    if hosts > 1:
        yield _local(64, _EIGHT_BITS, "codecs.Int8(4096)", "int8")
        yield _streaming(100, 4, 5, _FOUR_BITS, "codecs.E3M0(4096)", "4 bits")
        yield _diloco(500, _FOUR_BITS, "codecs.E3M0(4096)", "4 bits")


def _local(period: int, codec: Codec | None = None, code: str = "", words: str = "") -> Candidate:
    return Candidate(
        "local SGD",
        _with(f"period {period}", words),
        f"training = localsgd.LocalSGD({INNER}, period={period}{_compress(code)})",
        period=period,
        codec=codec,
    )


def _hierarchical(host_period: int, period: int) -> Candidate:
    levels = f'{{{host_period}: "host", {period}: "world"}}'
    return Candidate(
        "hierarchical",
        f"host {host_period}, all {period}",
        f"training = localsgd.PostLocalSGDOptimizer({INNER}, "
        f"localsgd.HierarchicalModelAverager({levels}))",
        period=period,
        host_period=host_period,
    )


def _overlapped(period: int, delay: int) -> Candidate:
    return Candidate(
        "overlapped",
        f"period {period}, delay {delay}",
        f"training = localsgd.OverlappedSGD({INNER}, period={period}, delay={delay})",
        period=period,
        delay=delay,
    )


def _diloco(period: int, codec: Codec | None = None, code: str = "", words: str = "") -> Candidate:
    return Candidate(
        "DiLoCo",
        _with(f"period {period}", words),
        f"training = localsgd.DiLoCo({INNER}, period={period}{_compress(code)})",
        period=period,
        codec=codec,
    )


def _streaming(
    period: int,
    fragments: int,
    delay: int,
    codec: Codec | None = None,
    code: str = "",
    words: str = "",
) -> Candidate:
    return Candidate(
        "streaming",
        _with(f"period {period}, {fragments} fragments, delay {delay}", words),
        f"training = localsgd.StreamingDiLoCo({INNER}, period={period}, fragments={fragments}, "
        f"delay={delay}{_compress(code)})",
        period=period,
        fragments=fragments,
        delay=delay,
        codec=codec,
    )


def _with(settings: str, words: str) -> str:
    return f"{settings}, {words}" if words else settings


def _compress(code: str) -> str:
    return f", compress=localsgd.{code}" if code else ""
