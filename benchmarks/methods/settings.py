"""Which methods are compared, and with which numbers: one row for each.

Rates of Nesterov's SGD are those of the examples. Plain SGD's is the better of 0.1 and 0.4 for all
its rows. AdamW's are the best of 0.004, 0.008 and 0.016 for each method alone at period 16, of the
last two for streaming and NoLoCo; that was judged by held-out loss, from one or two seeds. The
highest was best for averaging, so a still higher one may be better. Rows that name a rate have it
so as to share DiLoCo's, as its paper compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from localsgd import (
    EASGD,
    SCAFFOLD,
    Arena,
    Communicator,
    DiLoCo,
    HierarchicalModelAverager,
    LocalSGD,
    ModelAverager,
    OverlappedSGD,
    PostLocalSGDOptimizer,
    SlowMo,
    StreamingDiLoCo,
    codecs,
    every,
    gossip,
    optim,
    schedules,
)
from localsgd.lr import Rate

# Each method is one of a family, which share a picture.
PERIODS, OUTER, CODECS, GOSSIP, UNLIKE = "periods", "outer", "codecs", "gossip", "unlike"
APART = "1+1+1+1"
PAIRS = "2+2"


@dataclass(frozen=True)
class Inner:
    """An optimizer of local steps, and how it is named in a table.

    Attributes:
        peak: the highest learning rate.
    """

    name: str
    peak: float
    make: Callable[[Arena, float], optim.SGD | optim.AdamW]

    def __str__(self) -> str:
        return f"{self.name} {self.peak:g}"


Make: TypeAlias = "Callable[[optim.SGD | optim.AdamW, Rate], PostLocalSGDOptimizer]"


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        paper: its number on arXiv, or a name.
        make: a training object from the inner optimizer and its schedule of rates; collective.
        hosts: how workers are spread, as in ``LOCALSGD_HOSTS``.
    """

    name: str
    family: str
    paper: str
    inner: Inner
    make: Make
    hosts: str = APART


def momentum(peak: float) -> Inner:
    return Inner("Nesterov", peak, lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9, nesterov=True))


def plain(peak: float) -> Inner:
    return Inner("SGD", peak, lambda p, lr: optim.SGD(p, lr=lr))


def adamw(peak: float) -> Inner:
    return Inner("AdamW", peak, lambda p, lr: optim.AdamW(p, lr=lr, weight_decay=0.1))


def averaged(make: Callable[[Communicator], ModelAverager]) -> Make:
    """The wrapper around an averager of the parameters' workers."""
    return lambda inner, rate: PostLocalSGDOptimizer(inner, make(inner.arenas[0].comm), rate=rate)


def local(period: int, synchronous_steps: int = 0) -> Make:
    return lambda inner, rate: LocalSGD(
        inner, period, synchronous_steps=synchronous_steps, rate=rate
    )


def diloco(period: int, compress: codecs.Codec | None = None, *, feedback: bool = True) -> Make:
    return lambda inner, rate: DiLoCo(
        inner, period, rate=rate, compress=compress, error_feedback=feedback
    )


def compressed(compress: codecs.Codec, *, feedback: bool = True) -> Make:
    return lambda inner, rate: LocalSGD(
        inner, 4, rate=rate, compress=compress, error_feedback=feedback
    )


def gossiping(period: int, graph: gossip.Graph) -> Make:
    return averaged(lambda comm: gossip.GossipAverager(every(period), graph, comm))


def slowmo(period: int) -> Make:
    return lambda inner, rate: SlowMo(inner, period, state="reset", rate=rate)


def streaming(period: int, delay: int) -> Make:
    return lambda inner, rate: StreamingDiLoCo(inner, period, 2, delay=delay, mixing=0.5, rate=rate)


def overlapped(period: int, delay: int) -> Make:
    return lambda inner, rate: OverlappedSGD(inner, period, delay, rate=rate)


def easgd(period: int) -> Make:
    return lambda inner, rate: EASGD(inner, period, rate=rate)


def scaffold(period: int) -> Make:
    def make(inner: optim.SGD | optim.AdamW, rate: Rate) -> PostLocalSGDOptimizer:
        assert isinstance(inner, optim.SGD)
        return SCAFFOLD(inner, period, rate=rate)

    return make


def push_sum(period: int) -> Make:
    graph = gossip.one_peer_exponential()
    return averaged(lambda comm: gossip.PushSumAverager(every(period), graph, comm))


def noloco(period: int) -> Make:
    return averaged(lambda comm: gossip.NoLoCoAverager(every(period), comm))


def choco(period: int) -> Make:
    graph, int8 = gossip.ring(), codecs.Int8()
    return averaged(lambda comm: gossip.ChocoAverager(every(period), graph, int8, 0.5, comm))


def hierarchical(levels: dict[int, int]) -> Make:
    return averaged(lambda comm: HierarchicalModelAverager(levels, 0, comm))


def quadratic(base: int, alpha: float) -> Make:
    """Rounds that grow longer as the rate falls."""

    def make(inner: optim.SGD | optim.AdamW, rate: Rate) -> PostLocalSGDOptimizer:
        peak = float(inner.param_groups[0]["lr"])
        due = schedules.quadratic(base, alpha, lambda step: rate.at(step, peak))
        return PostLocalSGDOptimizer(inner, ModelAverager(due, inner.arenas[0].comm), rate=rate)

    return make


def digits() -> Sequence[Row]:
    """The methods on handwritten digits."""
    sgd, adam, slow = momentum(0.05), adamw(0.016), plain(0.4)
    outer_rate = adamw(0.008)
    top, sign = codecs.TopK(64), codecs.Sign()
    ring, one_peer = gossip.ring(), gossip.one_peer_exponential()
    return [
        Row("synchronous", PERIODS, "1604.00981", sgd, local(1)),
        Row("local 4", PERIODS, "1805.09767", sgd, local(4)),
        Row("local 16", PERIODS, "1805.09767", sgd, local(16)),
        Row("local 64", PERIODS, "1805.09767", sgd, local(64)),
        Row("pairs 4, all 16", PERIODS, "1808.07217", sgd, hierarchical({4: 2, 16: 4}), PAIRS),
        Row("post-local, half, 16", PERIODS, "1808.07217", sgd, local(16, 480)),
        Row("quadratic", PERIODS, "2310.14423", sgd, quadratic(8, 0.12)),
        Row("local 17", PERIODS, "1805.09767", sgd, local(17)),
        Row("SlowMo 16", OUTER, "1910.00643", sgd, slowmo(16)),
        Row("overlapped 16, delay 4", OUTER, "2006.00441", sgd, overlapped(16, 4)),
        Row("EASGD 16", OUTER, "1412.6651", sgd, easgd(16)),
        Row("AdamW, local 16", OUTER, "1805.09767", adam, local(16)),
        Row("AdamW 0.008, local 16", OUTER, "1805.09767", outer_rate, local(16)),
        Row("DiLoCo 16", OUTER, "2311.08105", outer_rate, diloco(16)),
        Row("streaming 16, delay 2", OUTER, "2501.18512", adam, streaming(16, 2)),
        Row("DiLoCo 16, int8", CODECS, "2501.18512", outer_rate, diloco(16, codecs.Int8())),
        Row("DiLoCo 16, E3M0", CODECS, "2501.18512", outer_rate, diloco(16, codecs.E3M0())),
        Row("top 64 of 4096", CODECS, "1901.09847", sgd, compressed(top)),
        Row("top, no feedback", CODECS, "1901.09847", sgd, compressed(top, feedback=False)),
        Row("sign", CODECS, "1901.09847", sgd, compressed(sign)),
        Row("sign, no feedback", CODECS, "1901.09847", sgd, compressed(sign, feedback=False)),
        Row("ring 8", GOSSIP, "1705.09056", sgd, gossiping(8, ring)),
        Row("one peer 4", GOSSIP, "2110.13363", sgd, gossiping(4, one_peer)),
        Row("push-sum, one peer 4", GOSSIP, "1811.10792", sgd, push_sum(4)),
        Row("NoLoCo 16", GOSSIP, "2506.10911", adam, noloco(16)),
        Row("Choco int8, ring 8", GOSSIP, "1902.00340", sgd, choco(8)),
        Row("unlike, synchronous", UNLIKE, "1604.00981", slow, local(1)),
        Row("unlike, local 16", UNLIKE, "1805.09767", slow, local(16)),
        Row("unlike, SCAFFOLD 16", UNLIKE, "1910.06378", slow, scaffold(16)),
    ]


def chars() -> Sequence[Row]:
    """The methods on characters: those of most interest, since a step takes longer."""
    sgd, adam, outer_rate = momentum(0.3), adamw(0.016), adamw(0.004)
    return [
        Row("synchronous", PERIODS, "1604.00981", sgd, local(1)),
        Row("local 16", PERIODS, "1805.09767", sgd, local(16)),
        Row("local 64", PERIODS, "1805.09767", sgd, local(64)),
        Row("SlowMo 16", OUTER, "1910.00643", sgd, slowmo(16)),
        Row("AdamW, local 16", OUTER, "1805.09767", adam, local(16)),
        Row("AdamW, local 64", OUTER, "1805.09767", adam, local(64)),
        Row("AdamW 0.004, local 16", OUTER, "1805.09767", outer_rate, local(16)),
        Row("AdamW 0.004, local 64", OUTER, "1805.09767", outer_rate, local(64)),
        Row("DiLoCo 16", OUTER, "2311.08105", outer_rate, diloco(16)),
        Row("DiLoCo 64", OUTER, "2311.08105", outer_rate, diloco(64)),
        Row("DiLoCo 16, E3M0", CODECS, "2501.18512", outer_rate, diloco(16, codecs.E3M0())),
    ]
